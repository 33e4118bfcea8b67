"""model/trend_labels.py: labels against a hand-written loop, and where thresholds come from."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.trend_labels import (
    SPEC_THRESHOLDS,
    TrendThresholds,
    quantile_thresholds,
    soft_trend_labels,
    trend_labels,
)

NUMBERS = st.floats(-3, 3, width=32)


def label_by_hand(change: float, t1: float, t2: float, t3: float, t4: float) -> tuple[int, int]:
    """SPEC 1.1, paragraph "Labels", word for word."""
    m = (t2 + t3) / 2
    if change < t2:
        direction = 0
    elif t2 <= change <= t3:
        direction = 1
    else:
        direction = 2
    if change < t1:
        magnitude = 0
    elif t1 <= change < m:
        magnitude = 1
    elif m <= change <= t4:
        magnitude = 2
    else:
        magnitude = 3
    return direction, magnitude


@settings(deadline=None)
@given(
    rows=st.lists(st.lists(NUMBERS, min_size=3, max_size=3), min_size=1, max_size=8),
    last=NUMBERS,
    thresholds=st.lists(st.integers(-200, 200), min_size=4, max_size=4, unique=True),
)
def test_labels_equal_the_hand_written_loop(
    rows: list[list[float]], last: float, thresholds: list[int]
):
    cuts = torch.tensor(sorted(thresholds)) / 64  # exact in binary: the middle has no rounding
    future = torch.tensor(rows)
    labels = trend_labels(future, torch.full((len(rows),), last), cuts)
    for row in range(len(rows)):
        change = labels.change[row].item()
        assert change == pytest.approx(sum(rows[row]) / 3 - last, abs=1e-5)
        got = (labels.direction[row].item(), labels.magnitude[row].item())
        assert got == label_by_hand(change, *cuts.tolist())


def test_a_change_on_a_threshold_counts_as_the_class_inside():
    cuts = torch.tensor([-2.0, -0.5, 1.5, 2.0])
    change = torch.tensor([-2.0, -0.5, 0.5, 1.5, 2.0])
    labels = trend_labels(change[:, None], torch.zeros(5), cuts)
    assert labels.direction.tolist() == [0, 1, 1, 1, 2]
    assert labels.magnitude.tolist() == [1, 1, 2, 2, 2]


@settings(deadline=None)
@given(values=st.lists(NUMBERS, min_size=1, max_size=50))
def test_quantiles_equal_numpys(values: list[float]):
    expected = np.quantile(np.array(values, dtype=np.float64), [0.15, 0.4, 0.6, 0.85])
    got = quantile_thresholds(torch.tensor(values))
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_fitted_quantiles_share_the_training_windows_out():
    changes = torch.randn(4000, generator=torch.Generator().manual_seed(0))
    thresholds = TrendThresholds("quantile")
    thresholds.fit(changes)
    labels = thresholds(changes[:, None], torch.zeros(4000))
    direction = labels.direction.bincount() / 4000
    torch.testing.assert_close(direction, torch.tensor([0.4, 0.2, 0.4]), rtol=0, atol=1e-3)
    magnitude = labels.magnitude.bincount() / 4000
    assert magnitude[0] == magnitude[3] == pytest.approx(0.15, abs=1e-3)


def test_constant_changes_give_finite_equal_thresholds_and_flat_labels():
    thresholds = TrendThresholds("quantile")
    thresholds.fit(torch.zeros(10))
    labels = thresholds(torch.zeros(2, 3), torch.zeros(2))
    assert labels.direction.tolist() == [1, 1]
    assert labels.magnitude.tolist() == [2, 2]


def test_fitted_thresholds_travel_in_the_state_dict():
    fitted, other = TrendThresholds("quantile"), TrendThresholds("quantile")
    fitted.fit(torch.linspace(-1, 1, 100))
    other.load_state_dict(fitted.state_dict())
    assert torch.equal(other.values, fitted.values)
    assert other(torch.zeros(1, 1), torch.zeros(1)).direction.tolist() == [1]


def test_fixed_thresholds_stay_float32_when_the_model_is_cast():
    thresholds = TrendThresholds(list(SPEC_THRESHOLDS)).bfloat16()
    assert torch.equal(thresholds.values, torch.tensor(SPEC_THRESHOLDS))


def test_fixed_thresholds_have_no_parameters():
    assert not list(TrendThresholds([-1.0, -0.5, 0.5, 1.0]).parameters())


def test_soft_labels_are_probabilities_and_harden_towards_the_labels():
    change = torch.linspace(-3, 3, 50)
    cuts = torch.tensor([-1.01, -0.33, 0.34, 1.02])
    direction, magnitude = soft_trend_labels(change, cuts)
    for probabilities in (direction, magnitude):
        assert probabilities.min() >= 0
        torch.testing.assert_close(probabilities.sum(1), torch.ones(50))
    hard = trend_labels(change[:, None], torch.zeros(50), cuts)
    sharp_direction, sharp_magnitude = soft_trend_labels(change, cuts, temperature=1e-4)
    assert torch.equal(sharp_direction.argmax(1), hard.direction)
    assert torch.equal(sharp_magnitude.argmax(1), hard.magnitude)


def test_learnable_thresholds_start_at_the_quantiles_and_get_a_gradient():
    changes = torch.randn(500, generator=torch.Generator().manual_seed(0))
    thresholds = TrendThresholds("learnable")
    torch.testing.assert_close(thresholds._learned(), torch.tensor(SPEC_THRESHOLDS))
    thresholds.fit(changes)
    torch.testing.assert_close(thresholds._learned(), quantile_thresholds(changes))
    labels = thresholds(changes[:, None], torch.zeros(500))
    assert labels.soft_direction is not None
    assert labels.soft_magnitude is not None
    (labels.soft_direction[:, 0].square().sum() + labels.soft_magnitude[:, 3].sum()).backward()
    for parameter in thresholds.parameters():
        assert parameter.grad is not None
        assert parameter.grad.any()


def test_learnable_thresholds_keep_their_order_whatever_an_optimizer_does():
    thresholds = TrendThresholds("learnable")
    with torch.no_grad():
        thresholds.log_gaps.copy_(torch.tensor([-9.0, 2.0, -30.0]))
    assert (thresholds._learned().diff() >= 0).all()


def test_refuses_quantiles_that_were_never_fitted():
    with pytest.raises(ValueError, match="trend_thresholds=quantile was never fitted: call fit"):
        TrendThresholds("quantile")(torch.zeros(2, 3), torch.zeros(2))


def test_refuses_to_fit_nothing_or_nan():
    with pytest.raises(ValueError, match="0 finite of 0"):
        quantile_thresholds(torch.zeros(0))
    with pytest.raises(ValueError, match="1 finite of 2"):
        quantile_thresholds(torch.tensor([0.0, torch.nan]))


def test_refuses_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match=r"got shapes \(2, 3\) and \(3,\)"):
        trend_labels(torch.zeros(2, 3), torch.zeros(3), torch.zeros(4))


def test_a_shorter_horizon_is_labelled_by_its_own_steps():
    future = torch.tensor([[0.3, 0.5, float("nan"), float("nan")]])
    found = trend_labels(future, torch.tensor([0.1]), torch.tensor(SPEC_THRESHOLDS))
    alone = trend_labels(future[:, :2], torch.tensor([0.1]), torch.tensor(SPEC_THRESHOLDS))
    torch.testing.assert_close(found.change, torch.tensor([0.3]))
    assert [int(found.direction), int(found.magnitude)] == [2, 3]
    torch.testing.assert_close(found.change, alone.change)
