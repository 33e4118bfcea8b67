"""model/forecaster.py: shapes, the anchor, gradients, types, state, and what it refuses."""

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from model.batch import ForecastInputs
from model.config import ModelConfig
from model.forecaster import Forecaster
from model.instance_norm import normalize
from model.reprogramming import word_basis
from tests.helpers.backbones import KINDS, Kind, load_tiny

L, H, N, B, T = 40, 6, 3, 2, 5
SMALL = ModelConfig(
    patch_len=8, stride=4, d_model=16, d_ff=8, n_heads=2, num_prototypes=12, dropout=0.0
)


def make(kind: Kind = "gpt2", **settings: object) -> Forecaster:
    torch.manual_seed(0)
    return Forecaster(dataclasses.replace(SMALL, **settings), L, H, load_tiny(kind))


def inputs_of(padding: int = 0, context: Tensor | None = None) -> ForecastInputs:
    rng = torch.Generator().manual_seed(1)
    made = torch.randn(B, L, N, generator=rng) * 3 + 1
    ids = torch.randint(300, (B * N, T), generator=rng)
    return ForecastInputs(
        context=made if context is None else context,
        prompt_ids=torch.cat([torch.zeros(B * N, padding, dtype=torch.long), ids], dim=1),
        prompt_mask=torch.arange(padding + T).expand(B * N, -1) >= padding,
    )


def wake_head(model: Forecaster) -> None:
    """Leave the zero start, so that the language model's path reaches the forecast."""
    nn.init.normal_(model.head.project.weight, std=0.1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("anchor", ["none", "ridge"])
def test_matches_the_steps_done_by_hand_for_one_row(kind: Kind, anchor: str):
    model, inputs = make(kind, anchor=anchor), inputs_of(padding=2)
    wake_head(model)
    if model.anchor is not None:
        model.anchor.set_solution(torch.randn(H, L) / L, "last")
    forecast = model.eval()(inputs).forecast
    b, n = 1, 2
    row, window = b * N + n, inputs.context[b, :, n]
    loc, scale = window.mean(), (window.var(unbiased=False) + 1e-5).sqrt()

    patches = model.patching(((window - loc) / scale)[None])
    tokens = model.reprogramming(
        patches, model.prototypes(word_basis(model.backbone.word_embeddings))
    )
    prompt = model.backbone.embed_tokens(inputs.prompt_ids[row : row + 1, 2:])  # no padding at all
    sequence = torch.cat([prompt, tokens], dim=1)
    states = model.backbone(sequence, torch.ones(sequence.shape[:2], dtype=torch.bool))
    base = loc if model.anchor is None else model.anchor(window[None])
    wanted = base + scale * model.head(states[:, T:])

    torch.testing.assert_close(forecast[b, :, n], wanted[0], atol=1e-4, rtol=1e-4)


def test_the_reference_shapes_of_etth1():
    config = ModelConfig(num_prototypes=50)
    model = Forecaster(config, 512, 96, load_tiny("gpt2", llm_layers=1, width=768))
    shapes: dict[str, tuple[int, ...]] = {}
    tokens_read: list[int] = []  # a causal model reads what stands before the patches first
    model.backbone.language_model.register_forward_pre_hook(
        lambda _module, _args, given: tokens_read.append(given["inputs_embeds"].shape[1]),
        with_kwargs=True,
    )
    for name in ("patching", "prototypes", "reprogramming", "backbone", "head", "anchor"):
        module = getattr(model, name)
        module.register_forward_hook(
            lambda _module, _args, out, name=name: shapes.update({name: tuple(out.shape)})
        )
    inputs = ForecastInputs(
        context=torch.randn(32, 512, 7),
        prompt_ids=torch.zeros(224, 8, dtype=torch.long),
        prompt_mask=torch.ones(224, 8, dtype=torch.bool),
    )
    with torch.no_grad():
        output = model(inputs)
    assert shapes == {
        "patching": (224, 63, 64),
        "prototypes": (50, 768),
        "reprogramming": (224, 63, 768),
        "backbone": (224, 63, 768),
        "head": (224, 96),
        "anchor": (224, 96),
    }
    assert tokens_read == [8, 63]
    assert output.forecast.shape == (32, 96, 7)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_of_prompts_is_invisible(kind: Kind):
    model = make(kind).eval()
    wake_head(model)
    short, long = model(inputs_of()).forecast, model(inputs_of(padding=9)).forecast
    torch.testing.assert_close(short, long, atol=1e-5, rtol=1e-5)
    changed = inputs_of()._replace(prompt_ids=inputs_of().prompt_ids + 1)
    assert not torch.allclose(short, model(changed).forecast, atol=1e-3)  # the prompt is read


def test_starts_at_the_forecast_of_the_anchor_bit_for_bit():
    model, inputs = make(), inputs_of()
    assert model.anchor is not None
    model.anchor.set_solution(torch.randn(H, L), "mean")
    rows = inputs.context.transpose(1, 2).reshape(B * N, L)
    wanted = model.anchor(rows).reshape(B, N, H).transpose(1, 2)
    assert torch.equal(model.train()(inputs).forecast, wanted)


@pytest.mark.parametrize("norm", ["mean", "last"])
def test_forecast_follows_an_affine_change_of_the_window(norm: str):
    model, inputs = make(anchor="none", norm=norm).eval(), inputs_of()
    moved = inputs_of(context=inputs.context * 4 - 7)
    torch.testing.assert_close(
        model(moved).forecast, model(inputs).forecast * 4 - 7, atol=1e-2, rtol=1e-3
    )


def test_variates_and_windows_do_not_mix():
    model, inputs = make(anchor="none").eval(), inputs_of()
    context = inputs.context.clone()
    context[0, :, 1] = torch.randn(L)
    changed = (model(inputs_of(context=context)).forecast - model(inputs).forecast).abs() > 1e-5
    assert changed.any(dim=1).tolist() == [[False, True, False], [False, False, False]]


@pytest.mark.parametrize("anchor", ["none", "ridge"])
@pytest.mark.parametrize("kind", ["gpt2", "bert"])
def test_every_trained_parameter_gets_a_gradient_within_five_steps(kind: Kind, anchor: str):
    model, inputs = make(kind, anchor=anchor, dropout=0.1).train(), inputs_of()
    optimizer = torch.optim.AdamW(model.trained_parameters().values(), lr=1e-3)
    silent = set(model.trained_parameters())
    for _ in range(5):
        optimizer.zero_grad()
        (model(inputs).forecast - 1).square().mean().backward()
        silent -= {n for n, p in model.trained_parameters().items() if p.grad.abs().sum() > 1e-12}
        optimizer.step()
    # A key's bias shifts all scores of a query alike, which softmax cannot see.
    assert silent <= {"reprogramming.key.bias"}
    assert all(p.grad is None for p in model.backbone.parameters())


def test_training_lowers_the_loss():
    model, inputs = make().train(), inputs_of()
    target = torch.randn(B, H, N)
    optimizer = torch.optim.AdamW(model.trained_parameters().values(), lr=1e-2)
    losses = []
    for _ in range(10):
        loss = (model(inputs).forecast - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_train_and_eval_agree_without_dropout():
    model, inputs = make(), inputs_of()
    wake_head(model)
    assert torch.equal(model.train()(inputs).forecast, model.eval()(inputs).forecast)


def test_windows_without_variance_have_a_finite_forecast():
    model = make().train()
    wake_head(model)
    context = torch.full((B, L, N), 5.0)
    forecast = model(inputs_of(context=context)).forecast
    forecast.sum().backward()
    assert (forecast - 5).abs().max() < 0.1
    assert all(p.grad.isfinite().all() for p in model.trained_parameters().values())


@pytest.mark.parametrize("kind", KINDS)
def test_runs_in_bfloat16_and_keeps_borders_and_anchor_in_float32(kind: Kind):
    model, inputs = make(kind), inputs_of()
    wake_head(model)
    wanted = model.eval()(inputs).forecast
    forecast = model.bfloat16()(inputs).forecast
    assert forecast.dtype == torch.float32
    assert model.anchor is not None
    assert model.anchor.weight.dtype == torch.float32
    assert model.head.project.weight.dtype == torch.bfloat16
    _, _, scale = normalize(inputs.context, "mean")
    assert ((forecast - wanted).abs() < 0.5 * scale).all()
    forecast.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.trained_parameters().values())


def test_a_half_precision_backbone_serves_float32_layers():
    model, inputs = make(), inputs_of()
    wake_head(model)
    model.backbone.bfloat16()
    forecast = model(inputs).forecast
    forecast.sum().backward()
    assert forecast.isfinite().all()
    assert all(p.grad.dtype == torch.float32 for p in model.trained_parameters().values())


def test_without_a_prompt_the_patches_stand_alone():
    model = make(prompt="none")
    output = model(ForecastInputs(context=inputs_of().context))
    assert output.forecast.shape == (B, H, N)


def test_an_anchor_of_none_builds_nothing():
    model = make(anchor="none")
    assert model.anchor is None
    assert not [name for name in model.state_dict() if "anchor" in name]


def test_the_state_holds_what_is_trained_and_the_anchor_and_nothing_else():
    model = make()
    state = model.trained_state_dict()
    trained = set(model.trained_parameters())
    assert set(state) == trained | {"anchor.weight", "anchor.subtracts_last"}
    assert not [name for name in trained if name.startswith("backbone.")]
    mine = {tensor.data_ptr() for tensor in model.state_dict().values()}
    assert all(t.is_contiguous() and t.data_ptr() not in mine for t in state.values())


def test_the_state_brings_another_model_to_the_same_forecast():
    model, inputs = make(), inputs_of()
    wake_head(model)
    model.anchor.set_solution(torch.randn(H, L), "mean")
    torch.manual_seed(9)
    other = Forecaster(SMALL, L, H, load_tiny())
    other.load_trained_state_dict(model.trained_state_dict())
    assert torch.equal(other.eval()(inputs).forecast, model.eval()(inputs).forecast)


def test_refuses_a_state_that_does_not_fit_and_stays_as_it_was():
    model = make()
    before = model.trained_state_dict()
    state = {name: tensor + 1 for name, tensor in before.items()}
    state["extra"] = state.pop("head.project.bias")
    state["anchor.weight"] = torch.zeros(H, L + 1)
    with pytest.raises(
        ValueError,
        match=r"missing head\.project\.bias; unexpected extra; anchor\.weight has shape "
        r"\(6, 41\), expected \(6, 40\)\): build the model",
    ):
        model.load_trained_state_dict(state)
    for name, tensor in model.trained_state_dict().items():
        assert torch.equal(tensor, before[name])


def test_refuses_a_head_wider_than_the_backbone():
    with pytest.raises(ValueError, match=r"model\.d_ff=33 .*at most 32"):
        make(d_ff=33)


def test_refuses_another_window_length():
    with pytest.raises(ValueError, match=r"context has shape \(2, 39, 3\): .*data\.seq_len = 40"):
        make()(inputs_of(context=torch.zeros(B, L - 1, N)))


def test_refuses_missing_and_unasked_prompts():
    bare = ForecastInputs(context=inputs_of().context)
    with pytest.raises(ValueError, match=r"prompt_ids is missing and model\.prompt=full: pass"):
        make()(bare)
    with pytest.raises(ValueError, match=r"prompt_ids is given and model\.prompt=none: pass"):
        make(prompt="none")(inputs_of())


def test_refuses_prompts_of_another_number_of_rows():
    inputs = inputs_of()
    wrong = inputs._replace(prompt_ids=inputs.prompt_ids[:4])
    with pytest.raises(ValueError, match=r"\(4, 5\) and \(6, 5\): pass one row .*6 rows"):
        make()(wrong)
    with pytest.raises(ValueError, match=r"\(6, 5\) and None: pass"):
        make()(inputs._replace(prompt_mask=None))
