"""model/adapters.py: LoRA starts at nothing, trains its matrices alone, and comes back."""

import pytest
import torch
from torch import Tensor

from model.backbone import Backbone
from model.batch import ForecastInputs
from model.config import LoraConfig, ModelConfig
from model.forecaster import Forecaster
from tests.helpers.backbones import DECODERS, KINDS, Kind, all_true, load_tiny, tokens_of

WIDE = 64
L, H, N = 48, 8, 2
SMALL = ModelConfig(
    patch_len=8, stride=4, d_model=8, d_ff=8, n_heads=2, num_prototypes=12, dropout=0.0,
    anchor="none",
)  # fmt: skip


def run(backbone: Backbone, embeddings: Tensor) -> Tensor:
    states: Tensor = backbone(embeddings, all_true(embeddings))
    return states


def trained(backbone: Backbone) -> dict[str, Tensor]:
    return {name: p for name, p in backbone.named_parameters() if p.requires_grad}


def bytes_of(backbone: Backbone) -> dict[str, Tensor]:
    """Copies as bytes: packed 4-bit numbers, read as floats, may be NaN."""
    return {
        name: p.detach().contiguous().view(torch.uint8).clone()
        for name, p in backbone.named_parameters()
    }


def stir(backbone: Backbone) -> None:
    """Move the matrices that start at zero."""
    for name, parameter in trained(backbone).items():
        if ".lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("in_4bit", [False, True])
def test_the_pairs_start_at_nothing_and_add_their_product(kind: Kind, in_4bit: bool):
    plain = load_tiny(kind, width=WIDE, load_in_4bit=in_4bit)
    backbone = load_tiny(kind, width=WIDE, load_in_4bit=in_4bit, lora=LoraConfig(r=4, alpha=6))
    embeddings = tokens_of(width=WIDE)
    torch.testing.assert_close(run(backbone, embeddings), run(plain, embeddings))
    assert backbone.is_trained
    assert not plain.is_trained
    names = trained(backbone)
    assert names
    assert all(".lora_A." in name or ".lora_B." in name for name in names)
    assert all(p.dtype == torch.float32 for p in names.values())
    stir(backbone)
    assert not torch.allclose(run(backbone, embeddings), run(plain, embeddings), atol=1e-3)
    if not in_4bit and kind != "gpt2":
        # By hand: the product of each pair is added to its matrix, times alpha / r.
        for name, lora_a in names.items():
            if ".lora_A." in name:
                owner = name.split(".lora_A.")[0].removeprefix("language_model.")
                lora_b = names[name.replace("lora_A", "lora_B")]
                weight = plain.language_model.get_submodule(owner).weight
                weight.data += 6 / 4 * (lora_b @ lora_a).detach()
        torch.testing.assert_close(run(backbone, embeddings), run(plain, embeddings))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("in_4bit", [False, True])
def test_training_moves_the_pairs_and_no_other_weight(kind: Kind, in_4bit: bool):
    backbone = load_tiny(kind, width=WIDE, load_in_4bit=in_4bit, lora=LoraConfig(r=2)).train()
    before = bytes_of(backbone)
    optimizer = torch.optim.AdamW(trained(backbone).values(), lr=0.01)
    for _ in range(3):
        (run(backbone, tokens_of(width=WIDE)) * torch.arange(WIDE)).sum().backward()
        optimizer.step()
    after = bytes_of(backbone)
    moved = {name for name, content in after.items() if not torch.equal(content, before[name])}
    assert moved == trained(backbone).keys()


def test_dropout_of_the_pairs_follows_the_mode_and_no_other_does():
    backbone = load_tiny("gpt2", width=WIDE, lora=LoraConfig(r=4, dropout=0.5))
    stir(backbone)
    embeddings = tokens_of(width=WIDE)
    still = run(backbone.eval(), embeddings)
    assert torch.equal(run(backbone, embeddings), still)
    assert not torch.allclose(run(backbone.train(), embeddings), still)
    active = [n for n, m in backbone.language_model.named_modules() if m.training]
    assert active
    assert all("lora_dropout" in name for name in active)
    assert torch.equal(run(backbone.eval(), embeddings), still)


def test_the_seed_alone_decides_the_first_matrices():
    def first() -> list[Tensor]:
        return [p.detach() for p in trained(load_tiny("llama", lora=LoraConfig(r=4))).values()]

    before = torch.random.get_rng_state()
    one = first()
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(3)
    assert all(torch.equal(a, b) for a, b in zip(one, first(), strict=True))


def test_named_targets_and_all_of_them():
    def owners(targets: object) -> set[str]:
        backbone = load_tiny("llama", 1, lora=LoraConfig(r=2, target_modules=targets))  # type: ignore[arg-type]
        return {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in trained(backbone)}

    assert owners("auto") == {"q_proj", "v_proj"}
    assert owners(["down_proj"]) == {"down_proj"}
    assert owners("all-linear") == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    }  # fmt: skip


def test_targets_that_are_not_there_are_refused_by_name():
    with pytest.raises(ValueError, match=r"target_modules=\['c_attn'\]: .*such as .*'q_proj'"):
        load_tiny("llama", lora=LoraConfig(r=2, target_modules=["c_attn"]))


def test_an_embedding_is_refused_as_a_target():
    with pytest.raises(ValueError, match=r"'embed_tokens'\]: an embedding .*blocks, .*'q_proj'"):
        load_tiny("llama", lora=LoraConfig(r=2, target_modules=["q_proj", "embed_tokens"]))


@pytest.mark.parametrize("kind", DECODERS)
def test_nothing_is_kept_over_steps_and_the_prompt_gets_its_gradient(kind: Kind):
    prefix = torch.arange(20, 24)
    config = ModelConfig(
        patch_len=8, stride=4, d_model=8, d_ff=8, n_heads=2, num_prototypes=12, dropout=0.0,
        anchor="none", token_order="prefix_cached",
    )  # fmt: skip

    def make() -> Forecaster:
        torch.manual_seed(0)
        backbone = load_tiny(kind, width=WIDE, lora=LoraConfig(r=4))
        model = Forecaster(config, L, H, backbone, prompt_prefix=prefix)
        stir(backbone)
        return model

    model, fresh = make(), make()
    rows = 2 * N
    inputs = ForecastInputs(
        context=torch.randn(2, L, N),
        prompt_ids=torch.arange(rows * 5).view(rows, 5) + 30,
        prompt_mask=torch.ones(rows, 5, dtype=torch.bool),
    )
    first = model(inputs).forecast
    first.square().sum().backward()
    # A matrix that acts on the prompt's tokens before the last block moves the patches' states.
    assert all(p.grad is not None for p in trained(model.backbone).values())
    for moved, other in zip(
        trained(model.backbone).values(), trained(fresh.backbone).values(), strict=True
    ):
        moved.data += 0.05
        other.data += 0.05
    second = model(inputs).forecast
    assert not torch.allclose(second, first)
    torch.testing.assert_close(second, fresh(inputs).forecast)


def test_saved_pairs_come_back(tmp_path: object):
    def make(seed: int) -> Forecaster:
        torch.manual_seed(seed)
        return Forecaster(SMALL, L, H, load_tiny("gpt2", lora=LoraConfig(r=4)))

    model, other = make(0), make(1)
    stir(model.backbone)
    state = model.trained_state_dict()
    assert sum(".lora_" in name for name in state) == len(trained(model.backbone))
    assert not any("base_layer" in name for name in state)
    other.load_trained_state_dict(state)
    inputs = ForecastInputs(
        context=torch.randn(2, L, N),
        prompt_ids=torch.arange(8).view(4, 2),
        prompt_mask=torch.ones(4, 2, dtype=torch.bool),
    )
    assert torch.equal(other.eval()(inputs).forecast, model.eval()(inputs).forecast)
