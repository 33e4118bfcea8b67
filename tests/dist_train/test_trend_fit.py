"""dist_train/trend_fit.py: thresholds are numpy's quantiles of the training split, of it alone."""

import numpy as np
import pandas as pd
import pytest
import torch

from dist_train import trend_fit
from dist_train.data.windows import ForecastData
from dist_train.trend_fit import training_changes
from model.trend_labels import TrendThresholds
from tests.helpers.forecast_data import data_of_sources, source_of, wide_data

L, H = 24, 6


def values_of(rows: int = 300) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(rows, 3)).cumsum(axis=0)


def changes_by_loop(data: ForecastData) -> list[float]:
    values, (first, end) = data.windows["train"].values[0], data.windows["train"].ranges[0]
    changes = []
    for start in range(first, end - L - H + 1):
        for column in range(values.shape[1]):
            window = values[start : start + L, column].astype(np.float64)
            future = values[start + L : start + L + H, column].astype(np.float64)
            changes.append((future.mean() - window[-1]) / np.sqrt(window.var() + 1e-5))
    return changes


def fitted(data: ForecastData) -> torch.Tensor:
    thresholds = TrendThresholds("quantile")
    thresholds.fit(training_changes(data.windows["train"]))
    return thresholds.values


def test_the_changes_are_those_of_a_loop_and_the_thresholds_numpys_quantiles():
    data = wide_data(values_of(), L, H)
    expected = changes_by_loop(data)
    np.testing.assert_allclose(training_changes(data.windows["train"]), expected, atol=1e-4)
    quantiles = np.quantile(expected, [0.15, 0.40, 0.60, 0.85])
    np.testing.assert_allclose(fitted(data), quantiles, atol=1e-4)


def test_validation_and_test_rows_change_nothing():
    values = values_of()
    before = fitted(wide_data(values, L, H))
    values[210:] = 1000 * np.random.default_rng(1).normal(size=values[210:].shape)
    assert torch.equal(fitted(wide_data(values, L, H)), before)
    values[209] += 5  # the newest training row
    assert not torch.equal(fitted(wide_data(values, L, H)), before)


def test_a_large_split_is_sampled_evenly(monkeypatch: pytest.MonkeyPatch):
    data = wide_data(values_of(3000), L, H)
    whole = fitted(data)
    monkeypatch.setattr(trend_fit, "MAX_ROWS", 900)
    monkeypatch.setattr(trend_fit, "CHUNK_WINDOWS", 64)
    assert training_changes(data.windows["train"]).shape == (900,)
    np.testing.assert_allclose(fitted(data), whole, atol=0.25)


def test_a_constant_series_has_no_change():
    values = values_of()
    values[:, 1] = 7.0
    changes = training_changes(wide_data(values, L, H).windows["train"])
    assert changes.isfinite().all()
    assert changes.view(-1, 3)[:, 1].abs().max() < 1e-6


def test_a_shorter_horizon_counts_with_its_own_steps():
    dates = pd.date_range("2020", periods=200, freq="h").to_numpy()
    values = values_of(200)
    long = source_of("long", [(dates, values[:, 0])])
    sources = [long, source_of("short", [(dates, values[:, 1])], pred_len=2)]
    data = data_of_sources(sources, L, H)
    parts = [training_changes(data.only(number).windows["train"]) for number in range(2)]
    found = training_changes(data.windows["train"])
    torch.testing.assert_close(found, torch.cat(parts))
