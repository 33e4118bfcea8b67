"""dist_train/ablation/significance.py: scipy's own tests, slow sums, and how often chance wins."""

import numpy as np
import pytest
import scipy.stats

from dist_train.ablation.significance import (
    Difference,
    diebold_mariano,
    long_run_variance,
    paired_t_test,
)


@pytest.mark.parametrize("count", [2, 3, 7])
def test_the_paired_test_is_scipys(count: int):
    rng = np.random.default_rng(count)
    mine, others = rng.normal(0.3, 0.1, count), rng.normal(0.2, 0.1, count)
    expected = scipy.stats.ttest_rel(mine, others).pvalue
    assert paired_t_test((mine - others).tolist()) == pytest.approx(float(expected), rel=1e-9)


def test_what_has_no_noise_is_certain_and_one_seed_is_not():
    assert paired_t_test([0.1, 0.1, 0.1]) == 0
    assert paired_t_test([0.0, 0.0]) == 1
    assert paired_t_test([0.3]) is None
    assert paired_t_test([]) is None


def test_the_long_run_variance_is_a_double_sum():
    values = np.random.default_rng(0).normal(size=40).cumsum()
    centred, lags, total = values - values.mean(), 6, 0.0
    for one in range(40):
        for other in range(40):
            distance = abs(one - other)
            if distance <= lags:
                total += (1 - distance / (lags + 1)) * centred[one] * centred[other]
    assert long_run_variance(values, lags) == pytest.approx(total / 40)
    assert long_run_variance(values, 0) == pytest.approx(values.var())


def overlapping(rng: np.random.Generator, count: int, horizon: int) -> np.ndarray:
    """Errors of windows that share all but one of their steps with the next. Mean 0."""
    steps = rng.normal(size=count + horizon - 1)
    return np.convolve(steps, np.ones(horizon) / horizon, mode="valid")


@pytest.mark.parametrize("horizon", [4, 24])
def test_equal_forecasters_are_told_apart_as_rarely_as_the_level_says(horizon: int):
    rng = np.random.default_rng(1)
    found, naive, trials = 0, 0, 300
    for _ in range(trials):
        values = overlapping(rng, 240, horizon)
        p = diebold_mariano(values, horizon)
        assert p is not None
        found += p < 0.05
        naive += scipy.stats.ttest_1samp(values, 0).pvalue < 0.05
    assert 0.01 <= found / trials <= 0.1
    assert naive / trials > 0.25  # what the overlap does to a test that knows nothing of it


def test_a_difference_that_is_there_is_found():
    values = overlapping(np.random.default_rng(2), 2000, 24) + 0.2
    p = diebold_mariano(values, 24)
    assert p is not None
    assert p < 0.001


def test_a_test_split_of_few_horizons_tells_nothing():
    assert diebold_mariano(np.random.default_rng(0).normal(size=239), 24) is None


def test_equal_and_constant_differences_are_certain():
    assert diebold_mariano(np.zeros(100), 4) == 1
    assert diebold_mariano(np.full(100, 0.25), 4) == 0


def test_the_verdict_follows_the_seeds():
    def verdict(p: float | None) -> bool | None:
        return Difference(mse=-0.1, seeds=3, p_seeds=p, p_windows=0.001).beyond_seed_noise

    assert (verdict(0.04), verdict(0.06), verdict(None)) == (True, False, None)
