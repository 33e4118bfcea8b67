"""dist_train/baselines.py: the ridge is scikit-learn's, and everything is fitted on train alone."""

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
import sklearn.linear_model
import torch

from dist_train import baselines, progress, stop_signals
from dist_train.baselines import (
    all_baselines,
    fit_dlinear,
    fit_ridge,
    fit_ridge_and_extended,
    fit_ridges,
    fit_ridges_and_extended,
)
from dist_train.data.catalog import lookup
from dist_train.data.config import DataConfig, SourceConfig
from dist_train.data.windows import ForecastData, WindowSet, load_forecast_data
from dist_train.evaluation import score_split
from model.config import Extension
from tests.helpers.ranks import run_ranks
from tests.helpers.series import write_series, write_stamped
from tests.helpers.sources import run_over_sources, with_a_shorter_horizon

# EVIDENCE of the project: MSE of the closed-form ridge at 96, 192, 336, 720 on all test windows.
ETTH1_RIDGE = {96: 0.363, 192: 0.396, 336: 0.419, 720: 0.419}


def small_data(folder: Path, pred_len: int = 12) -> ForecastData:
    path = write_series(folder / "series.csv")
    return load_forecast_data(DataConfig(path=str(path), seq_len=36, pred_len=pred_len))


def rows(data: ForecastData, split: str, norm: str) -> tuple[np.ndarray, np.ndarray]:
    """Centred windows and targets as float64 rows, by a plain loop."""
    windows = data.windows[split]
    inputs, outputs = [], []
    for number in range(len(windows)):
        context, target = windows.context(number), windows.target(number)
        for variate in range(windows.num_variates):
            x = context[:, variate].astype(np.float64)
            loc = x[-1] if norm == "last" else x.mean()
            inputs.append(x - loc)
            outputs.append(target[:, variate] - loc)
    return np.array(inputs), np.array(outputs)


def test_the_ridge_is_the_best_scikit_learn_ridge_on_validation(tmp_path: Path):
    data = small_data(tmp_path)
    fit = fit_ridge(data)
    scores = {}
    for norm in ("last", "mean"):
        x, y = rows(data, "train", norm)
        x_val, y_val = rows(data, "val", norm)
        for lam in (1e1, 1e2, 1e3, 1e4):
            ridge = sklearn.linear_model.Ridge(alpha=lam, fit_intercept=False).fit(x, y)
            mse = float(np.mean((ridge.predict(x_val) - y_val) ** 2))
            scores[norm, lam] = (mse, ridge.coef_)
    best = min(scores, key=lambda key: scores[key][0])
    assert (fit.norm, fit.lam) == best
    assert fit.validation_mse == pytest.approx(scores[best][0], rel=1e-6)
    np.testing.assert_allclose(fit.weight.numpy(), scores[best][1], atol=1e-6)


def fit_and_save(rank: int, world_size: int, data: ForecastData, out: Path) -> None:
    torch.save(fit_ridge(data).weight, out / f"{world_size}-{rank}.pt")


@pytest.mark.ranks
def test_the_ridge_does_not_depend_on_the_number_of_ranks(tmp_path: Path):
    data = small_data(tmp_path)
    for world_size in (1, 3):
        run_ranks(fit_and_save, world_size, data, tmp_path)
    weights = [torch.load(path, weights_only=True) for path in sorted(tmp_path.glob("*.pt"))]
    assert len(weights) == 4
    for weight in weights[1:]:
        torch.testing.assert_close(weight, weights[0], rtol=1e-9, atol=1e-12)


def test_nothing_fitted_changes_with_the_test_rows(tmp_path: Path):
    data = small_data(tmp_path)
    series = data.series_set.series[0]
    altered_values = series.values.copy()
    altered_values[data.split_rows[0]["test"][0] :] *= 7
    altered = dataclasses.replace(series, values=altered_values)
    series_set = dataclasses.replace(data.series_set, series=(altered,))
    from dist_train.data.windows import build_forecast_data

    config = DataConfig(path="unused", seq_len=36, pred_len=12)
    again = build_forecast_data(config, series_set)
    assert torch.equal(fit_ridge(again).weight, fit_ridge(data).weight)


def test_dlinear_learns_the_cycle(tmp_path: Path):
    data = small_data(tmp_path)
    ridge = fit_ridge(data)
    sums = score_split(all_baselines(data, ridge, seed=0), data, "test", batch_size=64)
    mse = {name: total.mse() for name, total in sums.items()}
    assert mse["DLinear"] < 0.5 * mse["repeat last"]
    assert mse["ridge"] < 0.5 * mse["repeat last"]


def test_the_learning_rate_of_dlinear_falls_to_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    rates: list[float] = []

    class Watched(torch.optim.Adam):
        def step(self, closure: None = None) -> None:
            rates.extend(group["lr"] for group in self.param_groups)
            super().step(closure)

    monkeypatch.setattr(torch.optim, "Adam", Watched)
    monkeypatch.setattr(baselines, "DLINEAR_STEPS", 20)
    fit_dlinear(small_data(tmp_path), seed=1)
    falling = [baselines.DLINEAR_LEARNING_RATE * (1 - step / 20) for step in range(20)]
    assert rates == pytest.approx(falling)


def test_dlinear_is_given_up_where_a_signal_has_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    marks: list[None] = []
    monkeypatch.setattr(progress, "mark", lambda: marks.append(None))
    monkeypatch.setattr(baselines, "DLINEAR_STEPS", 20)
    data = small_data(tmp_path)
    fit_dlinear(data, seed=1)
    assert len(marks) == 20
    monkeypatch.setattr(stop_signals, "_received", "SIGTERM")  # as of a run that is over
    fit_dlinear(data, seed=1)
    assert len(marks) == 40
    monkeypatch.setattr(stop_signals, "_received", "")
    with stop_signals.finishing_steps():
        monkeypatch.setattr(stop_signals, "_received", "SIGTERM")
        fit_dlinear(data, seed=1)
    assert len(marks) == 41


@pytest.mark.slow
def test_dlinear_is_the_same_for_the_same_seed_and_leaves_the_generator_alone(tmp_path: Path):
    data = small_data(tmp_path)
    torch.manual_seed(3)
    expected_next = torch.rand(1)
    torch.manual_seed(3)
    first = fit_dlinear(data, seed=1)
    assert torch.equal(torch.rand(1), expected_next)
    second = fit_dlinear(data, seed=1)
    sums = score_split({"a": first, "b": second}, data, "val", batch_size=64)
    assert sums["a"].mse() == sums["b"].mse()


@pytest.mark.parametrize("pred_len", ETTH1_RIDGE)
def test_reproduces_the_ridge_row_of_etth1(pred_len: int):
    root = os.environ.get("TIMELLM_DATA_ROOT")
    if root is None or not list(Path(root).rglob(lookup("ETTh1").file or "")):
        pytest.skip("ETTh1.csv is not here: set TIMELLM_DATA_ROOT to the folder that holds it")
    data = load_forecast_data(DataConfig(dataset="ETTh1", seq_len=512, pred_len=pred_len))
    fit = fit_ridge(data)
    sums = score_split({"ridge": all_ridge(data, fit)}, data, "test", batch_size=128)
    assert sums["ridge"].mse() == pytest.approx(ETTH1_RIDGE[pred_len], abs=0.002)


def all_ridge(data: ForecastData, fit):  # type: ignore[no-untyped-def]
    """Only the ridge, so that DLinear is not trained."""
    from dist_train.baselines import ridge_forecast

    return ridge_forecast(fit)


def test_the_ridge_of_all_is_that_of_all_windows_that_are_trained_on(tmp_path: Path):
    data = load_forecast_data(run_over_sources(tmp_path).data)
    joint, by_source = fit_ridges(data)
    trained = dataclasses.replace(data, windows=data.windows | {
        "val": WindowSet(
            data.windows["val"].values[:5], data.windows["val"].ranges[:5], 48, 12
        )
    })  # fmt: skip
    expected = fit_ridge(trained)
    assert (joint.norm, joint.lam) == (expected.norm, expected.lam)
    np.testing.assert_allclose(joint.weight, expected.weight, atol=1e-9)
    assert by_source[2] is joint
    assert len({one.weight.data_ptr() for one in by_source}) == 3


def test_all_baselines_learn_a_shorter_horizon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # DLinear ends at the first validation that is no better, as one that is no number is not.
    monkeypatch.setattr(baselines, "DLINEAR_PATIENCE", 1)
    monkeypatch.setattr(baselines, "DLINEAR_CHECK_EVERY", 5)
    data = load_forecast_data(with_a_shorter_horizon(run_over_sources(tmp_path)).data)
    joint, by_source = fit_ridges(data)
    assert [int(fit.weight.any(dim=1).sum()) for fit in by_source] == [12, 5, 12]
    sums = score_split(all_baselines(data, joint, 0, by_source), data, "test", batch_size=64)
    for part in list(data.source_channels().values())[:2]:
        mse = {name: total.of_channels(part).mse() for name, total in sums.items()}
        for name in ("ridge", "DLinear"):
            assert mse[name] < 0.5 * mse["repeat last"]


def test_each_source_reads_more_as_it_would_alone(tmp_path: Path):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(3, 1500))
    for row in range(1, 1500):
        values[:, row] = 2 - 1.6 * np.abs(values[:, row - 1]) + 0.1 * values[:, row]
    for name, one, frequency in zip("abc", values, ["h", "D", "h"], strict=True):
        write_stamped(tmp_path / f"{name}.csv", one[:, None], frequency)
    sources = [
        SourceConfig(path=str(tmp_path / "a.csv")),
        SourceConfig(path=str(tmp_path / "b.csv"), pred_len=1),
        SourceConfig(path=str(tmp_path / "c.csv"), percent=0),
    ]
    config = DataConfig(sources=sources, seq_len=12, pred_len=2)
    data = load_forecast_data(config, with_dates=True)
    day, bent = Extension(calendar="day", random_features=16), Extension(random_features=16)
    joint, by_source, extended = fit_ridges_and_extended(data, [day, bent, day])
    before, plain = fit_ridges(data)
    torch.testing.assert_close(joint.weight, before.weight)
    for number, extension in enumerate((day, bent)):
        ridge, more = fit_ridge_and_extended(data.only(number), extension=extension)
        steps = len(more.weight)
        torch.testing.assert_close(by_source[number].weight, plain[number].weight)
        torch.testing.assert_close(by_source[number].weight[:steps], ridge.weight)
        torch.testing.assert_close(extended[number].weight[:steps], more.weight)
        assert extended[number].extension == more.extension
        assert extended[number].validation_mse < 0.9 * ridge.validation_mse
        assert len(extended[number].weight) == 2
    assert extended[2] is by_source[2] is joint
