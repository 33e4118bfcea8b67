"""benchmarks/interval_methods.py: folds end before test; a spread that is right is told so."""

import numpy as np
import pytest

from benchmarks import interval_methods
from benchmarks.interval_methods import Errors, errors_of, folds_of, measure
from dist_train.data.config import DataConfig
from dist_train.data.windows import load_forecast_data
from tests.helpers.forecast_data import wide_data


def test_no_fold_reads_a_row_of_the_test_split():
    config = DataConfig(dataset="vic_elec", seq_len=336, pred_len=48)
    test_begins = load_forecast_data(config).split_rows[0]["test"][0]
    folds = folds_of("vic_elec")
    assert len(folds) == 3
    for fold in folds:
        ends = [rows[1] for rows in fold.split_rows[0].values()]
        assert ends == sorted(ends)
        assert ends[-1] <= test_begins


def errors(seed: int, scale: float) -> Errors:
    rng = np.random.default_rng(seed)
    size = rng.uniform(1, 5, size=(3000, 1)) * scale
    return Errors(rng.normal(size=(3000, 4, 1)) * size[:, None], size**2, np.ones_like(size))


@pytest.mark.parametrize("level", [80, 95])
def test_errors_that_follow_the_window_are_covered_when_the_windows_change(level: int):
    calibration, later = errors(0, 1.0), errors(1, 3.0)
    right, _ = measure(calibration, later, interval_methods.floored(0.01), level)
    wrong, _ = measure(calibration, later, interval_methods.plain, level)
    assert right == pytest.approx(level, abs=1.5)
    assert wrong < level - 10


def test_errors_are_those_of_the_ridge(monkeypatch: pytest.MonkeyPatch):
    rng = np.random.default_rng(0)
    data = wide_data(np.cumsum(rng.normal(size=(800, 2)), axis=0), seq_len=24, pred_len=8)
    monkeypatch.setattr(interval_methods, "BATCH", 7)
    first, _ = errors_of(data)
    windows = data.windows["val"]
    context, target = windows.batch(range(0, len(windows), 2))
    assert first.errors.shape == (len(context), 2, 2)
    np.testing.assert_allclose(first.variance, context.var(axis=1), rtol=1e-6)
    # Of a random walk nobody knows more than its last value.
    np.testing.assert_allclose(
        first.errors.std(), (target - context[:, -1:])[:, ::4].std(), rtol=0.25
    )
