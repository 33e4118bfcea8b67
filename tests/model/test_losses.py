"""model/losses.py: each term against its definition, the warm-up, empty batches, counts."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.batch import TrendPrediction
from model.config import GramConfig, TaprConfig
from model.losses import (
    LossTerm,
    class_counts,
    correct_count,
    forecast_loss,
    hierarchical_consistency,
    majority_count,
    retrieval_losses,
    total_loss,
    trend_losses,
)
from model.trend_labels import TrendLabels, soft_trend_labels, trend_labels

CUTS = torch.tensor([-1.0, -0.2, 0.2, 1.0])


def predict(rows: int, *, change: bool = True) -> TrendPrediction:
    return TrendPrediction(
        direction=torch.randn(rows, 3),
        magnitude=torch.randn(rows, 4),
        change=torch.randn(rows) if change else None,
    )


def labels_of(rows: int) -> TrendLabels:
    return trend_labels(torch.randn(rows, 5), torch.randn(rows), CUTS)


def consistency_by_loop(direction: Tensor, magnitude: Tensor) -> float:
    total = 0.0
    for p, q in zip(direction.softmax(1).tolist(), magnitude.softmax(1).tolist(), strict=True):
        coarse = [p[0] + p[1] / 2, p[2] + p[1] / 2]
        fine = [q[0] + q[1], q[2] + q[3]]
        total += sum(c * math.log(c / f) for c, f in zip(coarse, fine, strict=True))
    return total / len(direction)


def test_trend_terms_equal_their_definitions():
    prediction, labels = predict(7), labels_of(7)
    terms = trend_losses(prediction, labels, TaprConfig())
    for name, classes in (("direction", 3), ("magnitude", 4)):
        log_probs = getattr(prediction, name).log_softmax(1)
        target = F.one_hot(getattr(labels, name), classes) * 0.9 + 0.1 / classes
        torch.testing.assert_close(terms[name].value, -(target * log_probs).sum(1).mean())
    expected = consistency_by_loop(prediction.direction, prediction.magnitude)
    assert terms["hierarchy"].value.item() == pytest.approx(expected, abs=1e-5)
    assert prediction.change is not None
    error = F.smooth_l1_loss(prediction.change, labels.change)
    torch.testing.assert_close(terms["change"].value, error)


def test_weights_are_those_of_the_specification():
    terms = trend_losses(predict(3), labels_of(3), TaprConfig())
    weights = {name: term.weight for name, term in terms.items()}
    assert weights == pytest.approx(
        {"direction": 0.15, "magnitude": 0.15, "hierarchy": 0.05, "change": 0.05}
    )
    gates = retrieval_losses(torch.rand(3), torch.rand(3), torch.ones(3, 2) > 0, GramConfig())
    assert {name: term.weight for name, term in gates.items()} == {
        "gate_entropy": 0.3,
        "gate_consistency": 0.3,
    }


def test_there_is_no_change_term_where_level_three_is_not_built():
    terms = trend_losses(predict(3, change=False), labels_of(3), TaprConfig(lambda_reg=0.0))
    assert sorted(terms) == ["direction", "hierarchy", "magnitude"]


def test_soft_labels_replace_the_classes():
    prediction, labels = predict(4), labels_of(4)
    direction, magnitude = soft_trend_labels(labels.change, CUTS)
    soft = TrendLabels(
        change=labels.change,
        direction=labels.direction,
        magnitude=labels.magnitude,
        soft_direction=direction,
        soft_magnitude=magnitude,
    )
    value = trend_losses(prediction, soft, TaprConfig(label_smoothing=0.0))["direction"].value
    expected = -(direction * prediction.direction.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(value, expected)


def test_consistency_is_zero_when_both_levels_agree():
    fine = torch.tensor([[0.1, 0.3, 0.4, 0.2], [0.7, 0.1, 0.1, 0.1]])
    coarse = torch.tensor([[0.3, 0.2, 0.5], [0.75, 0.1, 0.15]])  # a flat half goes to each side
    value = hierarchical_consistency(coarse.log(), fine.log())
    assert value.item() == pytest.approx(0, abs=1e-6)


@settings(deadline=None)
@given(gap=st.floats(0.01, 500))
def test_consistency_is_positive_and_finite_when_they_disagree(gap: float):
    coarse = torch.tensor([[gap, -gap, 0.0]], requires_grad=True)  # down against up by ``gap``
    fine = torch.tensor([[0.0, 0.0, gap, gap]], requires_grad=True)
    value = hierarchical_consistency(coarse, fine)
    value.backward()
    assert 0 < value < torch.inf
    assert coarse.grad is not None
    assert fine.grad is not None
    assert coarse.grad.isfinite().all()
    assert fine.grad.isfinite().all()


def test_gate_terms_equal_their_definitions_and_skip_rows_without_neighbours():
    gate = torch.tensor([0.2, 0.9, 1.0, 0.5])
    match = torch.tensor([0.7, 0.1, 0.0, 1.0])
    valid = torch.tensor([[True, False], [True, True], [False, False], [False, True]])
    terms = retrieval_losses(gate, match, valid, GramConfig())

    def entropy(p: float) -> float:
        return -p * math.log(p) - (1 - p) * math.log(1 - p)

    mean = (0.2 + 0.9 + 0.5) / 3
    assert terms["gate_entropy"].value.item() == pytest.approx(-entropy(mean))
    expected = (0.7 * entropy(0.2) + 0.1 * entropy(0.9) + 1.0 * entropy(0.5)) / 3
    assert terms["gate_consistency"].value.item() == pytest.approx(expected)


def test_diverse_gates_and_decisive_gates_lower_their_terms():
    valid, match = torch.ones(4, 1, dtype=torch.bool), torch.ones(4)
    torn = retrieval_losses(torch.full((4,), 0.5), match, valid, GramConfig())
    split = retrieval_losses(torch.tensor([0.01, 0.99] * 2), match, valid, GramConfig())
    alike = retrieval_losses(torch.full((4,), 0.99), match, valid, GramConfig())
    assert split["gate_entropy"].value < alike["gate_entropy"].value
    assert split["gate_consistency"].value < torn["gate_consistency"].value


def test_rows_without_neighbours_get_no_gradient_and_the_match_none_at_all():
    gate, match = torch.rand(3, requires_grad=True), torch.rand(3, requires_grad=True)
    valid = torch.tensor([[True], [False], [True]])
    total_loss(retrieval_losses(gate, match, valid, GramConfig()), 1, 0).backward()
    assert gate.grad is not None
    assert gate.grad[1] == 0
    assert gate.grad[[0, 2]].all()
    assert match.grad is None


@pytest.mark.parametrize("rows", [0, 3])
def test_everything_is_finite_and_zero_without_any_neighbour(rows: int):
    gate = torch.ones(rows, requires_grad=True)
    valid = torch.zeros(rows, 2, dtype=torch.bool)
    terms = retrieval_losses(gate, torch.zeros(rows), valid, GramConfig())
    total_loss(terms, 10, 0).backward()
    assert [term.value.item() for term in terms.values()] == [0, 0]
    assert gate.grad is not None
    assert not gate.grad.any()


def test_an_empty_batch_has_finite_losses():
    nothing = torch.zeros(0, 4, 2)
    terms = forecast_loss(nothing, nothing) | trend_losses(predict(0), labels_of(0), TaprConfig())
    assert total_loss(terms, 500, 500).item() == 0


def test_saturated_gates_are_finite():
    gate = torch.tensor([0.0, 1.0], requires_grad=True)
    valid = torch.ones(2, 1, dtype=torch.bool)
    total_loss(retrieval_losses(gate, torch.ones(2), valid, GramConfig()), 1, 0).backward()
    assert gate.grad is not None
    assert gate.grad.isfinite().all()


@pytest.mark.parametrize(
    ("step", "warmup_steps", "warmth"), [(0, 500, 0), (250, 500, 0.5), (900, 500, 1), (0, 0, 1)]
)
def test_the_warm_up_scales_everything_but_the_forecast(
    step: int, warmup_steps: int, warmth: float
):
    terms = {
        "forecast": LossTerm(value=torch.tensor(2.0), weight=1.0, warms_up=False),
        "direction": LossTerm(value=torch.tensor(3.0), weight=0.15),
        "gate_entropy": LossTerm(value=torch.tensor(-0.5), weight=0.3),
    }
    expected = 2.0 + warmth * (0.15 * 3.0 - 0.3 * 0.5)
    assert total_loss(terms, step, warmup_steps).item() == pytest.approx(expected)


def test_the_forecast_term_is_the_mean_squared_error():
    forecast, target = torch.randn(2, 5, 3), torch.randn(2, 5, 3)
    term = forecast_loss(forecast, target)["forecast"]
    torch.testing.assert_close(term.value, F.mse_loss(forecast, target))
    assert (term.weight, term.warms_up) == (1.0, False)


def test_counts_add_up_over_batches():
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0], [0.0, 1.0, 5.0], [9.0, 0.0, 0.0]])
    labels = torch.tensor([0, 2, 2, 2])
    hits, rows = correct_count(logits, labels)
    assert (hits.item(), rows) == (2, 4)
    counts = class_counts(labels[:2], 3) + class_counts(labels[2:], 3)
    assert counts.tolist() == [1, 0, 3]
    largest, count = majority_count(counts)
    assert (largest.item(), count.item()) == (3, 4)


def test_refuses_a_target_of_another_shape():
    with pytest.raises(ValueError, match=r"one shape, got \(2, 5, 3\) and \(2, 4, 3\)"):
        forecast_loss(torch.zeros(2, 5, 3), torch.zeros(2, 4, 3))


def test_refuses_no_terms_and_negative_counts():
    with pytest.raises(ValueError, match=r"terms \[\], step=0 .* at least one term"):
        total_loss({}, 0, 0)
    with pytest.raises(ValueError, match=r"step=-1 .* not negative"):
        total_loss(forecast_loss(torch.zeros(1, 1, 1), torch.zeros(1, 1, 1)), -1, 0)


def test_every_window_counts_alike_whatever_its_horizon():
    forecast = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(0))
    target = torch.zeros(2, 6, 3)
    whole = forecast_loss(forecast, target)["forecast"].value
    torch.testing.assert_close(whole, forecast.square().mean(), rtol=0, atol=0)
    target[1, 2:] = float("nan")
    found = forecast_loss(forecast, target)["forecast"].value
    expected = (forecast[0].square().mean() + forecast[1, :2].square().mean()) / 2
    torch.testing.assert_close(found, expected)
