"""dist_train/selection.py: what overlaps is not counted twice, and chance is not taken for gain."""

import numpy as np
import pytest

from dist_train.data.windows import WindowSet
from dist_train.evaluation import score_split
from dist_train.selection import block_errors, gain_in_standard_errors, may_replace
from dist_train.window_errors import WindowErrors
from tests.helpers.forecast_data import long_data, wide_data

PRED_LEN = 6


def windows_of(count: int, stride: int = 1) -> WindowSet:
    rows = (count - 1) * stride + 8 + PRED_LEN
    values = np.zeros((rows, 2), dtype=np.float32)
    return WindowSet([values], [(0, rows)], 8, PRED_LEN, stride)


@pytest.mark.parametrize(("count", "stride", "blocks"), [(60, 1, 10), (65, 1, 10), (20, 4, 12)])
def test_blocks_follow_each_other_and_none_is_shorter_than_a_horizon(count, stride, blocks):
    windows = windows_of(count, stride)
    starts = np.arange(count) * stride
    means = block_errors(starts.astype(float), windows)
    assert len(means) == blocks == (starts[-1] + 1) // PRED_LEN
    assert means == sorted(means)
    length = (starts[-1] + 1) / blocks
    assert length >= PRED_LEN
    for number, mean in enumerate(means):
        inside = starts[(starts >= number * length) & (starts < (number + 1) * length)]
        assert mean == pytest.approx(inside.mean())


def test_a_split_shorter_than_two_horizons_is_one_block_and_tells_nothing():
    windows = windows_of(2 * PRED_LEN - 1)
    simple = block_errors(np.ones(len(windows)), windows)
    other = block_errors(np.zeros(len(windows)), windows)
    assert (simple, other) == ([1.0], [0.0])
    assert gain_in_standard_errors(simple, other) == 0
    assert not may_replace("one_standard_error", 1e9, 1)


def test_series_that_are_forecast_at_one_time_are_one_observation():
    rng = np.random.default_rng(0)
    data = long_data([(0, rng.normal(size=300)), (0, rng.normal(size=300))], 8, PRED_LEN)
    windows = data.windows["train"]
    series, starts = windows.locate_batch(np.arange(len(windows)))
    assert set(series) == {0, 1}
    both = block_errors(starts + 100.0 * series, windows)
    alone = wide_data(np.zeros((300, 1)), 8, PRED_LEN).windows["train"]
    one = block_errors(np.arange(len(alone)).astype(float), alone)
    np.testing.assert_allclose(both, np.array(one) + 50.0)


def test_a_gain_is_told_in_its_standard_errors():
    simple, other = [1.0, 2.0, 3.0, 4.0], [0.5, 1.9, 2.8, 4.0]
    gains = np.array([0.5, 0.1, 0.2, 0.0])
    expected = gains.mean() / (gains.std(ddof=1) / 2)
    assert gain_in_standard_errors(simple, other) == pytest.approx(expected)
    assert gain_in_standard_errors(other, simple) == pytest.approx(-expected)
    assert gain_in_standard_errors(simple, simple) == 0
    everywhere_the_same = [value - 0.5 for value in simple]
    assert 1e6 < gain_in_standard_errors(simple, everywhere_the_same) < np.inf


@pytest.mark.parametrize("blocks", [3, 8, 40])
def test_of_equal_forecasters_one_in_five_is_taken_however_much_windows_overlap(blocks: int):
    windows, taken, by_windows = windows_of(blocks * PRED_LEN), 0, 0
    rng = np.random.default_rng(1)
    kernel, runs = np.ones(PRED_LEN) / PRED_LEN, 2000
    for _ in range(runs):
        errors = np.convolve(rng.normal(size=len(windows) + PRED_LEN - 1), kernel, mode="valid")
        zero = np.zeros(len(windows))
        gain = gain_in_standard_errors(block_errors(zero, windows), block_errors(errors, windows))
        taken += may_replace("one_standard_error", gain, blocks)
        by_windows += -errors.mean() > errors.std(ddof=1) / np.sqrt(len(errors))
    assert 0.14 < taken / runs < 0.24  # of blocks that share no step it would be .16
    assert by_windows / runs > 0.3  # what happens to who takes every window for an observation


def test_the_lowest_needs_no_more_than_to_be_lower():
    assert may_replace("lowest", 0.1, 1)


@pytest.mark.parametrize(("blocks", "needed"), [(2, 1.84), (3, 1.32), (12, 1.05), (10_000, 1.0)])
def test_of_few_blocks_more_is_asked(blocks: int, needed: float):
    assert not may_replace("one_standard_error", needed - 0.01, blocks)
    assert may_replace("one_standard_error", needed + 0.01, blocks)


def test_errors_of_windows_are_gathered_as_they_are():
    data = wide_data(np.random.default_rng(0).normal(size=(200, 2)), 8, PRED_LEN)
    windows = data.windows["val"]
    errors = WindowErrors(windows)
    watched = errors.watch({"zero": lambda batch: batch.target * 0})
    sums = score_split(watched, data, "val", batch_size=5)
    gathered = errors.gather()["zero"]
    assert gathered.shape == (len(windows),)
    assert gathered.mean() == pytest.approx(sums["zero"].mse())
