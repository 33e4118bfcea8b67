"""model/backbone_substitutes.py: what stands in the language model's place."""

import pytest
import torch
from torch import Tensor, nn

from model.batch import ForecastInputs
from model.config import BackboneConfig, LoraConfig, ModelConfig
from model.forecaster import Forecaster
from tests.helpers.backbones import load_tiny, tokens_of

KINDS = ("none", "attention", "transformer")


def test_none_hands_the_tokens_on():
    embeddings = tokens_of(3, width=64)
    mask = torch.ones(3, 7, dtype=torch.bool)
    assert torch.equal(load_tiny("gpt2", width=64, kind="none")(embeddings, mask), embeddings)


@pytest.mark.parametrize("kind", ["attention", "transformer"])
def test_the_layer_equals_torchs_own(kind: str):
    backbone = load_tiny("gpt2", width=64, kind=kind)
    attention, *more = backbone.language_model.blocks  # type: ignore[union-attr, misc]
    wanted = nn.MultiheadAttention(64, attention.heads, batch_first=True)
    wanted.in_proj_weight.data = attention.inward.weight.data
    wanted.in_proj_bias.data = attention.inward.bias.data
    wanted.out_proj.load_state_dict(attention.outward.state_dict())
    embeddings = tokens_of(3, width=64)
    mask = torch.ones(3, 7, dtype=torch.bool)
    mask[1, :4] = False
    normed = attention.norm(embeddings)
    states = embeddings + wanted(normed, normed, normed, key_padding_mask=~mask)[0]
    if kind == "transformer":
        states = states + more[0].layers(states)
    torch.testing.assert_close(backbone(embeddings, mask), states)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_trained_the_words_are_not_and_padding_is_invisible(kind: str):
    backbone = load_tiny("llama", width=64, kind=kind).train()
    words = load_tiny("llama", width=64).word_embeddings
    assert torch.equal(backbone.word_embeddings, words)
    assert not backbone.can_read_ahead
    embeddings = tokens_of(3, width=64)
    mask = torch.ones(3, 7, dtype=torch.bool)
    mask[:, :2] = False
    changed = embeddings.clone()
    changed[:, :2] = 9.0
    torch.testing.assert_close(backbone(embeddings, mask)[:, 2:], backbone(changed, mask)[:, 2:])
    backbone(embeddings.requires_grad_(), mask).square().sum().backward()
    trained = [p for p in backbone.parameters() if p.requires_grad]
    assert bool(trained) is (kind != "none") is backbone.is_trained
    assert all(p.grad is not None for p in trained)


@pytest.mark.parametrize("kind", KINDS)
def test_a_forecaster_trains_around_it_in_bf16_too(kind: str):
    torch.manual_seed(0)
    config = ModelConfig(
        patch_len=8, stride=4, d_model=8, d_ff=8, n_heads=2, num_prototypes=12, anchor="none"
    )
    backbone = load_tiny("gpt2", width=64, dtype=torch.bfloat16, kind=kind)
    model = Forecaster(config, 48, 8, backbone).to(torch.bfloat16).train()
    inputs = ForecastInputs(
        context=torch.randn(2, 48, 2),
        prompt_ids=torch.arange(8).view(4, 2),
        prompt_mask=torch.ones(4, 2, dtype=torch.bool),
    )
    model(inputs).forecast.square().sum().backward()
    silent = {n for n, p in model.trained_parameters().items() if p.grad is None}
    assert not silent


@pytest.mark.parametrize(
    "settings",
    [{"load_in_4bit": True}, {"lora": LoraConfig(r=1)}, {"activation_checkpointing": True}],
)
def test_what_needs_a_language_model_is_refused(settings: dict[str, object]):
    with pytest.raises(ValueError, match=r"needs a language model, and backbone.kind=attention"):
        BackboneConfig(kind="attention", **settings)  # type: ignore[arg-type]


def test_the_seed_alone_decides_the_first_weights():
    def first() -> Tensor:
        return next(
            load_tiny("gpt2", width=64, kind="attention").language_model.blocks.parameters()
        )  # type: ignore[union-attr]

    before = torch.random.get_rng_state()
    one = first()
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(3)
    assert torch.equal(one, first())
