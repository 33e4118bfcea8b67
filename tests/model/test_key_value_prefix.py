"""model/key_value_prefix.py: reading in parts equals reading at once, forward and backward."""

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from model.backbone import Backbone
from model.batch import ForecastInputs
from model.config import GramConfig, ModelConfig, TaprConfig
from model.forecaster import Forecaster
from tests.helpers.backbones import DECODERS, Kind, load_tiny

ROWS, HEAD, TAIL, WIDTH = 3, 6, 4, 32
L, H, N, B = 40, 6, 3, 2
SMALL = ModelConfig(
    patch_len=8, stride=4, d_model=16, d_ff=8, n_heads=2, num_prototypes=12, dropout=0.0,
    token_order="prefix_cached", anchor="none",
)  # fmt: skip


def tokens(seed: int, rows: int, length: int) -> Tensor:
    made = torch.randn(rows, length, WIDTH, generator=torch.Generator().manual_seed(seed))
    return made.requires_grad_()


def left_padded(rows: int, length: int, padding: list[int]) -> Tensor:
    return torch.arange(length).expand(rows, -1) >= torch.tensor(padding)[:, None]


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("padding", [[0, 0, 0], [0, 3, 5], [6, 6, 1]], ids=str)
def test_reading_in_two_parts_equals_reading_at_once(kind: Kind, padding: list[int]):
    backbone = load_tiny(kind, llm_layers=3)
    head, tail = tokens(0, ROWS, HEAD), tokens(1, ROWS, TAIL)
    masks = left_padded(ROWS, HEAD, padding), torch.ones(ROWS, TAIL, dtype=torch.bool)

    def gradients(states: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad((states * torch.arange(WIDTH)).sum(), [head, tail]))

    whole = backbone(torch.cat([head, tail], dim=1), torch.cat(masks, dim=1))[:, HEAD:]
    parts = backbone(tail, masks[1], backbone.read(head, masks[0]))

    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=1e-5)
    for mine, wanted in zip(gradients(parts), gradients(whole), strict=True):
        torch.testing.assert_close(mine, wanted, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("kind", DECODERS)
def test_rows_share_a_prefix_that_was_read_once(kind: Kind):
    backbone = load_tiny(kind)
    common, own = tokens(0, 1, HEAD), tokens(1, ROWS, TAIL)
    mask = torch.ones(1, HEAD, dtype=torch.bool)
    own_mask = left_padded(ROWS, TAIL, [0, 2, 3])
    shared = backbone.read(common, mask).expand(ROWS)
    repeated = backbone.read(common.expand(ROWS, -1, -1), mask.expand(ROWS, -1))
    torch.testing.assert_close(
        backbone(own, own_mask, shared), backbone(own, own_mask, repeated), atol=1e-5, rtol=1e-5
    )


def last_feed_forward(backbone: Backbone) -> nn.Module:
    return [module for name, module in backbone.named_modules() if name.endswith("mlp")][-1]


@pytest.mark.parametrize("kind", DECODERS)
def test_the_last_block_stops_at_keys_and_values(kind: Kind):
    backbone = load_tiny(kind, llm_layers=2)
    calls: list[int] = []
    last_feed_forward(backbone).register_forward_hook(lambda *_: calls.append(1))
    head, tail = tokens(0, ROWS, HEAD), tokens(1, ROWS, TAIL)
    prefix = backbone.read(head, torch.ones(ROWS, HEAD, dtype=torch.bool))
    assert not calls
    backbone(tail, torch.ones(ROWS, TAIL, dtype=torch.bool), prefix)
    assert len(calls) == 1


def test_an_encoder_is_refused():
    backbone = load_tiny("bert")
    assert not backbone.can_read_ahead
    with pytest.raises(ValueError, match=r"bert cannot read tokens ahead: .*needs a decoder"):
        backbone.read(tokens(0, ROWS, HEAD), torch.ones(ROWS, HEAD, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"model.token_order=prefix_cached: .* encoder"):
        Forecaster(SMALL, L, H, backbone)


def test_a_backbone_that_looks_back_less_than_a_row_is_refused():
    """The padding of a prompt would stand between what is read once and the rest."""
    backbone = load_tiny("mistral")
    for reach in (None, 4096):
        backbone.reach = reach
        Forecaster(SMALL, L, H, backbone)
    backbone.reach = SMALL.max_prompt_tokens
    with pytest.raises(ValueError, match=r"looks \d+ tokens back, .* may have \d+: use .*=spec"):
        Forecaster(SMALL, L, H, backbone)


@pytest.mark.parametrize("common", [0, 4])
def test_a_model_that_forecast_in_inference_mode_can_be_trained(common: int):
    model = make("gpt2", torch.arange(300, 300 + common))
    inputs = ForecastInputs(
        context=torch.randn(B, L, N, generator=torch.Generator().manual_seed(2)),
        prompt_ids=torch.randint(300, (B * N, 5)),
        prompt_mask=torch.ones(B * N, 5, dtype=torch.bool),
    )
    with torch.inference_mode():
        forecast = model(inputs).forecast
    trained = model(inputs).forecast
    torch.testing.assert_close(trained, forecast.clone())
    trained.sum().backward()
    assert model.head.project.weight.grad is not None


def make(kind: Kind, prefix: Tensor | None, **settings: object) -> Forecaster:
    torch.manual_seed(0)
    config = dataclasses.replace(SMALL, **settings)  # type: ignore[arg-type]
    tapr = TaprConfig(trend_thresholds=[-1.0, -0.3, 0.3, 1.0])
    model = Forecaster(
        config, L, H, load_tiny(kind), tapr=tapr, gram=GramConfig(use_gram=False),
        prompt_prefix=prefix,
    )  # fmt: skip
    nn.init.normal_(model.head.project.weight, std=0.1)
    return model


def forecast_uncached(model: Forecaster, inputs: ForecastInputs, prefix: Tensor) -> Tensor:
    """The same order in one pass: common part, padding, statistics, trend, patches."""

    def read(given: ForecastInputs, extra: list[Tensor], patches: Tensor) -> Tensor:
        rows = len(patches)
        assert given.prompt_ids is not None
        assert given.prompt_mask is not None
        ids = torch.cat([prefix.expand(rows, -1), given.prompt_ids], dim=1)
        tail = torch.cat([*extra, patches], dim=1)
        embeddings = torch.cat([model.backbone.embed_tokens(ids), tail], dim=1)
        ones = torch.ones(rows, len(prefix), dtype=torch.bool)
        mask = torch.cat([ones, given.prompt_mask, torch.ones(tail.shape[:2]).bool()], dim=1)
        states: Tensor = model.backbone(embeddings, mask)
        return states[:, -model.num_patches :]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "_read", read)
        forecast: Tensor = model(inputs).forecast
    return forecast


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("common", [0, 4])
@pytest.mark.parametrize("padding", [0, 1, 5])
def test_prefix_cached_equals_the_same_order_uncached(kind: Kind, common: int, padding: int):
    prefix = torch.arange(300, 300 + common)
    model, own = make(kind, prefix), 5
    paddings = [min(own - 1, padding * (row % 2)) for row in range(B * N)]
    inputs = ForecastInputs(
        context=torch.randn(B, L, N, generator=torch.Generator().manual_seed(2)),
        prompt_ids=torch.randint(300, (B * N, own), generator=torch.Generator().manual_seed(3)),
        prompt_mask=left_padded(B * N, own, paddings),
    )

    def gradients(forecast: Tensor) -> dict[str, Tensor]:
        model.zero_grad()
        forecast.square().sum().backward()
        return {
            name: parameter.grad.clone()
            for name, parameter in model.named_parameters()
            if parameter.grad is not None
        }

    wanted = forecast_uncached(model, inputs, prefix)
    wanted_gradients = gradients(wanted)
    largest = max(float(gradient.abs().max()) for gradient in wanted_gradients.values())
    for _ in range(2):  # the second time the common part comes out of the cache
        found = model(inputs).forecast
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
        for name, gradient in gradients(found).items():
            torch.testing.assert_close(
                gradient, wanted_gradients[name], atol=1e-5 * largest, rtol=1e-4
            )


def test_the_common_part_is_read_once_and_anew_after_a_cast():
    model = make("llama", torch.arange(300, 304)).eval()
    first = model._common_prefix()
    assert model._common_prefix() is first
    model.double()
    cast = model._common_prefix()
    assert cast is not first
    assert cast is not None
    assert cast.keys[0].dtype == torch.float64
    assert not any("prompt_prefix" in name for name in model.trained_state_dict())
