"""model/trend_fusion.py: both forms against a loop, the modes, the bounds, the zero start."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.batch import TrendPrediction
from model.config import TaprConfig
from model.trend_fusion import TrendFusion

FACTORS = [-0.02, -0.005, 0.005, 0.02]
SPEC_PRESET = TaprConfig(
    trend_fusion="train_only",
    fusion_form="multiplicative",
    fusion_factors=FACTORS,
    lambda_reg=0.0,
)
BY_CLASS = TaprConfig(lambda_reg=0.0)


def predict(rows: int, *, change: bool = False) -> TrendPrediction:
    generator = torch.Generator().manual_seed(1)
    return TrendPrediction(
        direction=torch.randn(rows, 3, generator=generator),
        magnitude=torch.randn(rows, 4, generator=generator),
        change=torch.randn(rows, generator=generator) if change else None,
    )


def test_the_spec_preset_equals_the_obvious_loop_and_acts_only_in_training():
    fusion, prediction = TrendFusion(SPEC_PRESET, 5), predict(3)
    forecast = torch.randn(3, 5)
    fused = fusion.train()(forecast, prediction)
    for row in range(3):
        probabilities = prediction.magnitude[row].softmax(0).tolist()
        expected = sum(p * f for p, f in zip(probabilities, FACTORS, strict=True))
        for step in range(5):
            factor = 1 + 0.25 * expected * step / 4  # the gate starts at half of its 50 %
            assert fused[row, step].item() == pytest.approx(forecast[row, step].item() * factor)
    assert fusion.eval()(forecast, prediction) is forecast


def test_additive_fusion_adds_the_scaled_change_later_steps_more():
    fusion, prediction = TrendFusion(TaprConfig(), 5), predict(3, change=True)
    with torch.no_grad():
        fusion.change_scale.fill_(2.0)
    forecast = torch.randn(3, 5)
    assert prediction.change is not None
    expected = forecast + 0.25 * 2 * prediction.change[:, None] * torch.tensor([0, 1, 2, 3, 4]) / 4
    torch.testing.assert_close(fusion(forecast, prediction), expected)


@pytest.mark.parametrize("config", [TaprConfig(), BY_CLASS], ids=["change", "classes"])
def test_starts_at_zero_bit_for_bit(config: TaprConfig):
    forecast = torch.randn(3, 5)
    fused = TrendFusion(config, 5)(forecast, predict(3, change=config.builds_change))
    assert torch.equal(fused, forecast)


@pytest.mark.parametrize("config", [TaprConfig(), BY_CLASS], ids=["change", "classes"])
def test_every_parameter_gets_a_gradient_within_two_steps(config: TaprConfig):
    fusion = TrendFusion(config, 5)
    prediction, target = predict(6, change=config.builds_change), torch.randn(6, 5)
    optimizer = torch.optim.SGD(fusion.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        (fusion(torch.zeros(6, 5), prediction) - target).square().sum().backward()
        optimizer.step()
    assert not [n for n, p in fusion.named_parameters() if p.grad is None or not p.grad.any()]


@settings(deadline=None)
@given(bias=st.floats(-1e4, 1e4))
def test_never_moves_by_more_than_half_of_the_expected_change(bias: float):
    fusion, prediction = TrendFusion(TaprConfig(), 5), predict(3, change=True)
    with torch.no_grad():
        fusion.change_scale.fill_(1.0)
        fusion.gate.bias.fill_(bias)
    moved = fusion(torch.zeros(3, 5), prediction).abs()
    assert prediction.change is not None
    assert (moved <= prediction.change.abs()[:, None] / 2 + 1e-6).all()
    assert not moved[:, 0].any(), "the first step must not move"


def test_always_acts_alike_in_training_and_evaluation():
    fusion, prediction = TrendFusion(BY_CLASS, 5), predict(3)
    with torch.no_grad():
        fusion.class_factors.normal_()
    forecast = torch.randn(3, 5)
    trained = fusion.train()(forecast, prediction)
    assert torch.equal(trained, fusion.eval()(forecast, prediction))
    assert not torch.equal(trained, forecast)


def test_never_builds_nothing_and_changes_nothing():
    fusion = TrendFusion(TaprConfig(trend_fusion="never"), 5)
    forecast = torch.randn(3, 5)
    assert not list(fusion.parameters())
    assert fusion(forecast, predict(3)) is forecast


def test_fixed_factors_keep_their_digits_when_the_model_is_cast():
    fusion = TrendFusion(SPEC_PRESET, 5).bfloat16()
    assert torch.equal(fusion.factors, torch.tensor(FACTORS))
    assert fusion(torch.randn(3, 5), predict(3)).dtype == torch.float32


def test_refuses_another_horizon():
    with pytest.raises(ValueError, match=r"pred_len=5, got shape \(3, 4\)"):
        TrendFusion(BY_CLASS, 5)(torch.zeros(3, 4), predict(3))
