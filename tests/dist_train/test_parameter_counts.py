"""Counts of parameters equal those of real forecasters, part by part, exactly."""

import dataclasses
from typing import Any

import pytest

from dist_train import parameter_counts
from dist_train.config import RunConfig
from dist_train.data.config import DataConfig
from dist_train.parameter_counts import count_parameters
from dist_train.shapes import shape_of
from model import backbone_substitutes, pattern_encoder, trend_head
from model.backbone_files import locate_backbone
from model.backbone_loading import load_backbone
from model.config import BackboneConfig, GramConfig, LoraConfig, ModelConfig, TaprConfig
from model.forecaster import Forecaster
from tests.helpers.backbones import KINDS, tiny_backbone

MODEL = ModelConfig(d_model=12, d_ff=16, n_heads=2, num_prototypes=30)
GRAM = GramConfig(use_gram=True, d_repr=8)
CASES: dict[str, dict[str, Any]] = {
    "default": {},
    "bare": {"tapr": TaprConfig(use_tapr=False), "gram": GramConfig(use_gram=False)},
    "vocabulary": {"model": dataclasses.replace(MODEL, prototype_map="vocabulary")},
    "linear patches": {"model": dataclasses.replace(MODEL, patch_embedding="linear", stride=5)},
    "anchored": {"gram": dataclasses.replace(GRAM, retrieval_key="anchored")},
    "two scales, no change": {"tapr": TaprConfig(n_scales=2, lambda_reg=0)},
    "five scales, fixed factors": {
        "tapr": TaprConfig(n_scales=5, lambda_reg=0, fusion_factors=[0.1, 0.2, 0.3, 0.4]),
    },
    "multiplicative": {"tapr": TaprConfig(fusion_form="multiplicative")},
    "no fusion": {"tapr": TaprConfig(trend_fusion="never", trend_thresholds="learnable")},
    "odd lengths": {"data": DataConfig(seq_len=83, pred_len=7)},
}
LORA: dict[str, LoraConfig] = {
    "auto": LoraConfig(r=3),
    "all": LoraConfig(r=2, target_modules="all-linear"),
}
PREFIXES = {
    "patch embedding": "patching.",
    "text prototypes": "prototypes.",
    "reprogramming": "reprogramming.",
    "forecast head": "head.",
    "trend router": "trend.",
    "memory": "memory.",
}


def run_config(name: str, **sections: Any) -> RunConfig:
    chosen = {
        "data": DataConfig(seq_len=96, pred_len=24),
        "model": MODEL,
        "gram": GRAM,
        "backbone": BackboneConfig(name=name, llm_layers=2),
        **sections,
    }
    return RunConfig(**chosen)


def real(config: RunConfig) -> Forecaster:
    backbone = load_backbone(config.backbone, locate_backbone(config.backbone.name))
    return Forecaster(config.model, config.data.seq_len, config.data.pred_len, backbone,
                      tapr=config.tapr, gram=config.gram)  # fmt: skip


def compare(config: RunConfig) -> None:
    files = locate_backbone(config.backbone.name)
    counts = count_parameters(config, shape_of(files.config, config.backbone.llm_layers))
    model = real(config)
    trained = model.trained_parameters()
    for part, count in counts.trained.items():
        prefix = PREFIXES.get(part, "backbone.")
        own = [p for name, p in trained.items() if name.startswith(prefix)]
        assert count.matrices == sum(p.numel() for p in own if p.ndim >= 2), part
        assert count.vectors == sum(p.numel() for p in own if p.ndim < 2), part
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    assert counts.trained_total == sum(p.numel() for p in trained.values())
    assert counts.frozen_total == frozen
    assert sum(counts.trained_groups) == counts.trained_total
    assert counts.largest_trained == max(p.numel() for p in trained.values())


@pytest.mark.parametrize("case", CASES)
def test_counts_are_those_of_a_real_forecaster(case: str):
    compare(run_config(str(tiny_backbone("gpt2")), **CASES[case]))


@pytest.mark.parametrize("architecture", KINDS)
@pytest.mark.parametrize("lora", LORA)
def test_counts_with_lora_are_those_of_a_real_forecaster(architecture: Any, lora: str):
    name = str(tiny_backbone(architecture))
    backbone = BackboneConfig(name=name, llm_layers=3, lora=LORA[lora])
    compare(run_config(name, backbone=backbone))


@pytest.mark.parametrize("kind", ["none", "attention", "transformer"])
def test_counts_without_a_language_model_are_those_of_a_real_forecaster(kind: Any):
    name = str(tiny_backbone("llama"))
    compare(run_config(name, backbone=BackboneConfig(name=name, kind=kind, llm_layers=1)))


def test_named_lora_targets_count():
    name = str(tiny_backbone("llama"))
    lora = LoraConfig(r=2, target_modules=["o_proj", "mlp.down_proj"])
    compare(run_config(name, backbone=BackboneConfig(name=name, llm_layers=2, lora=lora)))


def test_unknown_lora_targets_are_refused():
    name = str(tiny_backbone("gpt2"))
    lora = LoraConfig(r=2, target_modules=["q_proj"])
    config = run_config(name, backbone=BackboneConfig(name=name, llm_layers=2, lora=lora))
    with pytest.raises(ValueError, match=r"target_modules=\['q_proj'\].*name one of attn.c_attn"):
        count_parameters(config, shape_of(locate_backbone(name).config, 2))


def test_a_memory_that_may_be_built_counts_as_built():
    name = str(tiny_backbone("gpt2"))
    shape = shape_of(locate_backbone(name).config, 2)
    auto = run_config(name, gram=dataclasses.replace(GRAM, use_gram="auto"))
    assert count_parameters(auto, shape) == count_parameters(run_config(name), shape)


def test_constants_are_those_of_the_model():
    assert parameter_counts.SHAPE_BLOCKS == pattern_encoder.NUM_BLOCKS
    assert parameter_counts.STATISTICS == pattern_encoder.NUM_STATISTICS
    assert parameter_counts.DIRECTIONS == trend_head.NUM_DIRECTIONS
    assert parameter_counts.MAGNITUDES == trend_head.NUM_MAGNITUDES
    assert parameter_counts.MLP_FACTOR == backbone_substitutes.MLP_FACTOR
