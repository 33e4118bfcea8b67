"""model/backbone.py: the cut equals Transformers' own, padding is invisible, all is frozen."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from model.backbone import Backbone
from model.backbone_files import locate_backbone
from model.backbone_loading import load_backbone
from model.config import BackboneConfig
from tests.helpers.backbones import (
    DECODERS,
    KINDS,
    VOCAB_SIZE,
    Kind,
    all_true,
    load_tiny,
    tokens_of,
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", [0, 3])
@pytest.mark.parametrize("padding", [1, 20])
def test_padding_is_invisible(kind: Kind, where: int, padding: int):
    backbone, embeddings = load_tiny(kind), tokens_of()
    garbage = torch.full((2, padding, 32), 7.0)
    padded = torch.cat([embeddings[:, :where], garbage, embeddings[:, where:]], dim=1)
    mask = torch.ones(padded.shape[:2], dtype=torch.bool)
    mask[:, where : where + padding] = False

    states = backbone(padded, mask)

    assert states.isfinite().all()
    torch.testing.assert_close(
        states[mask].view(2, 7, 32),
        backbone(embeddings, all_true(embeddings)),
        atol=1e-5,
        rtol=1e-5,
    )


@pytest.mark.parametrize("kind", DECODERS)
def test_decoders_do_not_look_ahead(kind: Kind):
    backbone, embeddings = load_tiny(kind), tokens_of()
    changed = embeddings.clone()
    changed[:, 5:] = 0.0
    mask = all_true(embeddings)
    torch.testing.assert_close(backbone(embeddings, mask)[:, :5], backbone(changed, mask)[:, :5])


def test_an_encoder_looks_both_ways():
    backbone, embeddings = load_tiny("bert"), tokens_of()
    changed = embeddings.clone()
    changed[:, 6] = 0.0
    mask = all_true(embeddings)
    assert not torch.allclose(backbone(embeddings, mask)[:, 0], backbone(changed, mask)[:, 0])


def test_roberta_counts_positions_from_after_its_pad_token(tmp_path: Path):
    config = transformers.RobertaConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=64, pad_token_id=1, initializer_range=0.2,
    )  # fmt: skip
    model = transformers.AutoModel.from_config(config).eval()
    model.save_pretrained(tmp_path)
    name = str(tmp_path)
    backbone = load_backbone(BackboneConfig(name=name, llm_layers=2), locate_backbone(name))
    embeddings = tokens_of()
    with torch.no_grad():
        wanted = model(inputs_embeds=embeddings).last_hidden_state
    torch.testing.assert_close(backbone(embeddings, all_true(embeddings)), wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_flows_to_the_inputs_and_to_no_weight(kind: Kind):
    backbone, embeddings = load_tiny(kind), tokens_of().requires_grad_()
    backbone(embeddings, all_true(embeddings)).square().sum().backward()
    assert embeddings.grad is not None
    assert (embeddings.grad != 0).any(dim=-1).all()
    assert all(p.grad is None and not p.requires_grad for p in backbone.parameters())


@pytest.mark.parametrize("kind", ["gpt2", "bert"])  # published with dropout 0.1
def test_is_in_eval_mode_whatever_is_asked(kind: Kind):
    backbone, embeddings = load_tiny(kind), tokens_of()
    still = backbone.eval()(embeddings, all_true(embeddings))
    torch.nn.Sequential(backbone).train()
    assert backbone.training
    assert torch.equal(backbone(embeddings, all_true(embeddings)), still)


def test_word_embeddings_are_the_rows_that_ids_look_up():
    backbone = load_tiny("gpt2")
    ids = torch.tensor([[3, 0, 5]])
    assert backbone.word_embeddings.shape == (VOCAB_SIZE, 32)
    assert not backbone.word_embeddings.requires_grad
    assert torch.equal(backbone.embed_tokens(ids), backbone.word_embeddings[ids])


def test_word_embeddings_of_a_partitioned_weight_come_from_its_owner():
    backbone = load_tiny("gpt2")
    wanted = backbone.word_embeddings
    backbone.language_model.wte.weight.ds_id = 0  # how ZeRO-3 marks a parameter
    assert torch.equal(backbone.word_embeddings, wanted)
    assert backbone.word_embeddings.data_ptr() != wanted.data_ptr()


@pytest.mark.parametrize("kind", KINDS)
def test_runs_in_bfloat16_with_float32_rotary_frequencies(kind: Kind):
    backbone, embeddings = load_tiny(kind), tokens_of()
    wanted = backbone(embeddings, all_true(embeddings))
    states = backbone.bfloat16()(embeddings, all_true(embeddings))
    assert states.dtype == backbone.dtype == torch.bfloat16
    assert (states.float() - wanted).abs().max() < 0.3
    frequencies = [b for name, b in backbone.named_buffers() if "inv_freq" in name]
    assert len(frequencies) >= (kind in ("qwen2", "llama", "mistral"))
    assert all(buffer.dtype == torch.float32 for buffer in frequencies)


def backbone_of(config: transformers.PretrainedConfig) -> Backbone:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Backbone(transformers.AutoModel.from_config(config))


SIZES: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 48, "initializer_range": 0.2, "pad_token_id": 0,
}  # fmt: skip
HYBRID = transformers.Lfm2Config(**SIZES, layer_types=["conv", "full_attention"])
LOCAL = transformers.Gemma3TextConfig(**SIZES, head_dim=8, sliding_window=12)


@pytest.mark.parametrize(
    ("config", "reach", "reads_ahead"),
    [
        (HYBRID, 0, False),
        (LOCAL, 12, True),
        (transformers.Qwen2Config(**SIZES), None, True),
        (transformers.MistralConfig(**SIZES, sliding_window=7), 7, True),
        (transformers.GPTNeoConfig(
            vocab_size=64, hidden_size=32, num_layers=2, num_heads=4,
            attention_types=[[["global", "local"], 1]], window_size=5,
        ), 5, True),
        (transformers.GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4), None, True),
    ],
)  # fmt: skip
def test_knows_how_far_its_blocks_look_back(
    config: transformers.PretrainedConfig, reach: int | None, reads_ahead: bool
):
    backbone = backbone_of(config)
    assert (backbone.reach, backbone.can_read_ahead) == (reach, reads_ahead)


@pytest.mark.parametrize("config", [HYBRID, LOCAL], ids=["hybrid", "local"])
def test_padding_before_all_tokens_is_invisible_to_those_that_do_not_look_all_the_way(
    config: transformers.PretrainedConfig,
):
    backbone, embeddings = backbone_of(config), tokens_of()
    padded = torch.cat([torch.full((2, 9, 32), 7.0), embeddings], dim=1)
    mask = torch.ones(padded.shape[:2], dtype=torch.bool)
    mask[:, :9] = False
    states = backbone(embeddings, all_true(embeddings))
    assert float(states.std()) > 0.1
    torch.testing.assert_close(backbone(padded, mask)[:, 9:], states, atol=1e-4, rtol=1e-4)


def test_positions_that_an_encoder_begins_with_are_not_counted():
    backbone = backbone_of(
        transformers.RobertaConfig(
            vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=4,
            intermediate_size=48, max_position_embeddings=18, pad_token_id=1,
        )
    )  # fmt: skip
    most = torch.zeros(1, 16, 32)
    assert backbone(most, all_true(most)).isfinite().all()
    more = torch.zeros(1, 17, 32)
    with pytest.raises(ValueError, match="17 tokens per row, the backbone has 16 positions"):
        backbone(more, all_true(more))


def test_refuses_more_tokens_than_positions():
    embeddings = torch.zeros(1, 513, 32)
    with pytest.raises(ValueError, match=r"513 tokens per row, .* 512 positions: lower"):
        load_tiny("gpt2", 1)(embeddings, all_true(embeddings))


def test_refuses_a_mask_of_another_shape():
    with pytest.raises(ValueError, match=r"\(1, 5, 32\) and \(1, 4\): pass"):
        load_tiny("gpt2", 1)(torch.zeros(1, 5, 32), torch.ones(1, 4, dtype=torch.bool))


def test_gpt2_keeps_one_tensor_of_its_activation_for_the_backward_pass():
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    tokens = tokens_of().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        load_tiny("gpt2", llm_layers=1)(tokens, all_true(tokens))
    # Four times as wide as the tokens, as the activation alone is; shared weights are not counted.
    assert sum(tensor.shape == (2, 7, 128) for tensor in kept) == 1
