"""dist_train/patchtst.py: it learns, on the budget given, and validation chooses its state."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dist_train.baselines import repeat_last
from dist_train.config import RunConfig
from dist_train.data.windows import ForecastData, load_forecast_data
from dist_train.evaluation import score_split
from dist_train.patchtst import fit_patchtst
from tests.helpers.runs import tiny_run
from tests.helpers.sources import run_over_sources, with_a_shorter_horizon


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, ForecastData]:
    config = tiny_run(tmp_path_factory.mktemp("patchtst"))
    return config, load_forecast_data(config.data)


def val_mse(data: ForecastData, forecast: object) -> float:
    sums = score_split({"x": forecast}, data, "val_selection", batch_size=64)  # type: ignore[dict-item]
    return sums["x"].mse()


def test_it_learns_a_daily_cycle_within_its_steps(run: tuple[RunConfig, ForecastData]):
    config, data = run
    longer = replace(config, train=replace(config.train, max_steps=60, eval_every=20))
    forecast, _ = fit_patchtst(data, longer)
    assert val_mse(data, forecast) < 0.5 * val_mse(data, repeat_last)


def test_the_same_seed_gives_the_same_forecasts_and_another_others(
    run: tuple[RunConfig, ForecastData],
):
    config, data = run
    short = replace(config, train=replace(config.train, max_steps=3))
    other = replace(short, train=replace(short.train, seed=5))
    values = [val_mse(data, fit_patchtst(data, each)[0]) for each in (short, short, other)]
    assert values[0] == values[1] != values[2]


def test_the_state_with_the_best_validation_is_kept(run: tuple[RunConfig, ForecastData]):
    config, data = run
    # A rate that soon does harm: what is kept is not what the last step left.
    train = replace(
        config.train, max_steps=12, eval_every=1, learning_rate=0.5, schedule="constant", patience=3
    )
    forecast, module = fit_patchtst(data, replace(config, train=train))
    kept = val_mse(data, forecast)
    first = replace(train, max_steps=1, eval_every=1)
    assert kept <= val_mse(data, fit_patchtst(data, replace(config, train=first))[0]) + 1e-6
    assert not module.training


def test_a_loss_that_is_not_finite_ends_it(run: tuple[RunConfig, ForecastData]):
    config, data = run
    data.windows["train"].values[0][100, 0] = float("nan")
    try:
        with pytest.raises(FloatingPointError, match="PatchTST: the loss is nan at step"):
            fit_patchtst(data, replace(config, train=replace(config.train, max_steps=60)))
    finally:
        data.windows["train"].values[0][100, 0] = 0
    assert torch.isfinite(torch.from_numpy(data.windows["train"].values[0])).all()


@pytest.mark.slow
def test_a_shorter_horizon_is_learnt_over_its_own_steps(tmp_path: Path):
    config = with_a_shorter_horizon(run_over_sources(tmp_path))
    longer = replace(config, train=replace(config.train, max_steps=60, eval_every=20))
    data = load_forecast_data(config.data)
    forecast, _ = fit_patchtst(data, longer)
    assert val_mse(data, forecast) < 0.5 * val_mse(data, repeat_last)
