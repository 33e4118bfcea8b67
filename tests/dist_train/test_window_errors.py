"""dist_train/window_errors.py: every window's own error, the same on any number of ranks."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dist_train.baselines import repeat_last, seasonal_naive
from dist_train.data.windows import ForecastData
from dist_train.evaluation import score_split
from dist_train.window_errors import WindowErrors, read_window_errors
from tests.helpers.forecast_data import data_of_sources, long_data, source_of
from tests.helpers.ranks import run_ranks

BASELINES = {"repeat last": repeat_last, "seasonal naive": seasonal_naive(4)}


def score(rank: int, world_size: int, data: ForecastData, out: Path) -> None:
    errors = WindowErrors(data.windows["test"])
    score_split(errors.watch(BASELINES), data, "test", batch_size=7)
    errors.write(out / f"{world_size}.safetensors")


@pytest.mark.ranks
def test_the_errors_are_those_of_a_plain_loop_on_any_number_of_ranks(tmp_path: Path):
    rng = np.random.default_rng(0)
    data = long_data([(0, rng.normal(size=200)), (7, rng.normal(size=260))], 16, 4)
    windows = data.windows["test"]
    for world_size in (1, 3):
        run_ranks(score, world_size, data, tmp_path)
        saved = read_window_errors(tmp_path / f"{world_size}.safetensors")
        assert list(saved.mse) == sorted(BASELINES)
        for number in range(len(windows)):
            context, target = windows.context(number), windows.target(number)
            error = float(((context[-1:].astype(float) - target) ** 2).mean())
            assert saved.mse["repeat last"][number] == pytest.approx(error, rel=1e-5)
            series, start = windows.locate(number)
            assert (saved.series[number], saved.forecast_start[number]) == (series, start + 16)


def test_a_file_of_something_else_is_refused(tmp_path: Path):
    path = tmp_path / "errors.safetensors"
    path.write_bytes(b"no such file")
    with pytest.raises(ValueError, match="holds no errors of windows .*; train again"):
        read_window_errors(path)


def test_an_error_is_the_mean_over_the_steps_that_a_windows_source_has():
    dates = pd.date_range("2020", periods=200, freq="h").to_numpy()
    values = np.random.default_rng(0).normal(size=(2, 200))
    sources = [
        source_of("a", [(dates, values[0])]),
        source_of("b", [(dates, values[1])], pred_len=3),
    ]
    data = data_of_sources(sources, 16, 4)
    errors = WindowErrors(data.windows["test"])
    score_split(errors.watch(BASELINES), data, "test", batch_size=7)
    found = []
    for number in range(2):
        alone = data.only(number)
        own = WindowErrors(alone.windows["test"])
        score_split(own.watch(BASELINES), alone, "test", batch_size=7)
        found.append(own.gather()["repeat last"])
    np.testing.assert_allclose(errors.gather()["repeat last"], np.concatenate(found), rtol=1e-12)
