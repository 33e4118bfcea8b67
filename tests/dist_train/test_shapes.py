"""Shapes of language models: counts equal those of Transformers' own models, exactly."""

import dataclasses
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel

from dist_train.shapes import PUBLISHED, published_shape, shape_of

# Numbers in all weights as published on the hub, with a head over the vocabulary where it is not
# tied to the word embeddings; BERT's without its pooler and its heads.
PUBLISHED_TOTALS = {
    "openai-community/gpt2": 124_439_808,
    "openai-community/gpt2-medium": 354_823_168,
    "openai-community/gpt2-large": 774_030_080,
    "openai-community/gpt2-xl": 1_557_611_200,
    "Qwen/Qwen2.5-0.5B": 494_032_768,
    "Qwen/Qwen2.5-1.5B": 1_543_714_304,
    "Qwen/Qwen2.5-7B": 7_615_616_512,
    "Qwen/Qwen2.5-14B": 14_770_033_664,
    "Qwen/Qwen2.5-32B": 32_763_876_352,
    "Qwen/Qwen2.5-72B": 72_706_203_648,
    "meta-llama/Llama-2-7b-hf": 6_738_415_616,
    "meta-llama/Llama-2-13b-hf": 13_015_864_320,
    "meta-llama/Llama-2-70b-hf": 68_976_648_192,
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
    "meta-llama/Llama-3.1-70B": 70_553_706_496,
    "mistralai/Mistral-7B-v0.1": 7_241_732_096,
    "HuggingFaceTB/SmolLM2-135M": 134_515_008,
    "HuggingFaceTB/SmolLM2-360M": 361_821_120,
    "HuggingFaceTB/SmolLM2-1.7B": 1_711_376_384,
    "google-bert/bert-base-uncased": 109_482_240 - 768 * 769,
}
UNTIED = ("Qwen2.5-7B", "14B", "32B", "72B", "Llama", "Mistral")


def blocks_of(name: str) -> int:
    config = PUBLISHED[name]
    return int(config.get("n_layer") or config["num_hidden_layers"])


def counted(config: dict[str, Any], llm_layers: int) -> dict[str, int]:
    """Count the weights of Transformers' model of this configuration, which has no memory."""
    settings = {key: value for key, value in config.items() if key != "model_type"}
    settings["n_layer" if config["model_type"] == "gpt2" else "num_hidden_layers"] = llm_layers
    with torch.device("meta"):
        model = AutoModel.from_config(AutoConfig.for_model(config["model_type"], **settings))
    model.pooler = None
    blocks = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList))
    block = list(blocks[0].parameters())
    return {
        "total": sum(p.numel() for p in model.parameters()),
        "block": sum(p.numel() for p in block),
        "matrices": sum(p.numel() for p in block if p.ndim == 2),
        "words": model.get_input_embeddings().weight.numel(),
    }


@pytest.mark.parametrize("name", sorted(PUBLISHED))
@pytest.mark.parametrize("whole", [False, True], ids=["cut", "whole"])
def test_counts_are_those_of_transformers(name: str, whole: bool):
    layers = blocks_of(name) if whole else 2
    shape = published_shape(name, layers)
    assert {
        "total": shape.total_weights,
        "block": shape.weights_per_block,
        "matrices": shape.matrix_weights_per_block,
        "words": shape.word_weights,
    } == counted(PUBLISHED[name], layers)


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_totals_are_the_published_ones(name: str):
    shape = published_shape(name, blocks_of(name))
    head = shape.word_weights if any(part in name for part in UNTIED) else 0
    assert shape.total_weights + head == PUBLISHED_TOTALS[name]


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "qwen3", "hidden_size": 64, "num_hidden_layers": 3, "vocab_size": 90,
         "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96,
         "head_dim": 32},
        {"model_type": "qwen3", "hidden_size": 64, "num_hidden_layers": 3, "vocab_size": 90,
         "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96},
        {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 3, "vocab_size": 90,
         "num_attention_heads": 4, "intermediate_size": 96, "attention_bias": True,
         "mlp_bias": True},
        {"model_type": "mistral", "hidden_size": 64, "num_hidden_layers": 3, "vocab_size": 90,
         "num_attention_heads": 4, "num_key_value_heads": 1, "intermediate_size": 96,
         "head_dim": 8},
        {"model_type": "gpt2", "n_embd": 64, "n_layer": 3, "n_head": 4, "vocab_size": 90,
         "n_positions": 70, "n_inner": 100},
        {"model_type": "bert", "hidden_size": 64, "num_hidden_layers": 3, "vocab_size": 90,
         "num_attention_heads": 4, "intermediate_size": 96, "max_position_embeddings": 70},
    ],
    ids=["qwen3", "qwen3_default_heads", "llama_biases", "mistral", "gpt2_inner", "bert"],
)  # fmt: skip
def test_every_option_of_an_architecture_counts(config: dict[str, Any]):
    shape = shape_of(config, 2)
    found = counted(config, 2)
    assert (shape.total_weights, shape.weights_per_block) == (found["total"], found["block"])


def test_a_shape_is_of_the_blocks_kept():
    half, whole = (published_shape("openai-community/gpt2", layers) for layers in (6, 12))
    assert whole.total_weights - half.total_weights == 6 * whole.weights_per_block
    assert dataclasses.replace(half, num_layers=12) == whole


def test_more_blocks_than_there_are_is_refused():
    with pytest.raises(ValueError, match=r"llm_layers=13: .*gpt2 has 12 layers: choose 1 to 12"):
        published_shape("openai-community/gpt2", 13)


def test_an_unknown_model_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"backbone.name=x/y: neither on disk .*Qwen2.5-7B"):
        published_shape("x/y", 1)
    with pytest.raises(ValueError, match=r"no model_type='mamba': choose one of bert, gpt2"):
        shape_of({"model_type": "mamba"}, 1)
    with pytest.raises(ValueError, match=r"its config.json lacks hidden_size"):
        shape_of({"model_type": "llama"}, 1)
