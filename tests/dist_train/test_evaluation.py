"""dist_train/evaluation.py: every window once, for any batch size and number of ranks."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dist_train.baselines import repeat_last, seasonal_naive
from dist_train.data.config import DataConfig
from dist_train.data.windows import ForecastData, load_forecast_data
from dist_train.evaluation import (
    finish_scores,
    score_split,
    scores_by_source,
    seasonal_naive_mae,
    selection_mse,
)
from tests.helpers.ranks import run_ranks
from tests.helpers.series import write_series
from tests.helpers.sources import run_over_sources

BASELINES = {"repeat last": repeat_last, "seasonal naive": seasonal_naive(24)}


def small_data(folder: Path) -> ForecastData:
    path = write_series(folder / "series.csv", rows=700, variates=3)
    return load_forecast_data(DataConfig(path=str(path), seq_len=48, pred_len=12))


def score_to_file(rank: int, world_size: int, data: ForecastData, out: Path) -> None:
    results = {}
    for batch in (1, 7, 32, 2048):
        scores = finish_scores(score_split(BASELINES, data, "test", batch_size=batch), data)
        results[batch] = {
            name: [row.num_windows, row.mse, row.mae, row.rmse_original, row.mase]
            for name, row in scores.items()
        }
    (out / f"{world_size}-{rank}.json").write_text(json.dumps(results))


@pytest.mark.ranks
def test_scores_do_not_depend_on_batch_size_or_ranks(tmp_path: Path):
    data = small_data(tmp_path)
    for world_size in (1, 2, 3):
        run_ranks(score_to_file, world_size, data, tmp_path)

    windows = data.windows["test"]
    everything = range(len(windows))
    context, target = windows.batch(list(everything))
    error = context[:, -1:].astype(np.float64) - target
    assert len(windows) == 700 * 2 // 10 - 12 + 1
    for path in tmp_path.glob("*-*.json"):
        for row in json.loads(path.read_text()).values():
            assert row["repeat last"][0] == len(windows)
            assert row["repeat last"][1] == pytest.approx((error**2).mean(), rel=1e-6)
            assert row["repeat last"][2] == pytest.approx(np.abs(error).mean(), rel=1e-6)
    rows = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("*-*.json"))]
    assert len(rows) == 6
    for row in rows:
        for batch in row:
            for name in BASELINES:
                assert row[batch][name] == pytest.approx(rows[0]["1"][name], rel=1e-6)


def test_mase_of_seasonal_naive_on_training_rows_is_its_definition(tmp_path: Path):
    data = small_data(tmp_path)
    train = data.train_values(0)
    expected = [
        np.mean([abs(train[t, n] - train[t - 24, n]) for t in range(24, len(train))])
        for n in range(3)
    ]
    assert seasonal_naive_mae(data) == pytest.approx(np.array(expected), rel=1e-12)


def test_seasonal_naive_repeats_the_last_season(tmp_path: Path):
    data = small_data(tmp_path)
    sums = score_split({"naive": seasonal_naive(24)}, data, "test", batch_size=16)
    context, target = data.windows["test"].batch(range(len(data.windows["test"])))
    error = torch.from_numpy(context[:, 24:36] - target).double()  # L=48: one season before
    assert sums["naive"].mse() == pytest.approx(float(error.square().mean()), rel=1e-6)


def test_each_source_is_scored_as_if_it_were_alone(tmp_path: Path):
    data = load_forecast_data(run_over_sources(tmp_path).data)
    periods = [source.series_set.seasonal_period for source in data.sources]
    assert periods == [24, 96, 7]
    rows = {"repeat last": repeat_last, "seasonal naive": seasonal_naive(*periods)}
    sums = score_split(rows, data, "test", batch_size=50)
    found = scores_by_source(sums, data)
    for number, source in enumerate(data.sources):
        part = data.only(number)
        alone = {"repeat last": repeat_last, "seasonal naive": seasonal_naive(periods[number])}
        expected = finish_scores(score_split(alone, part, "test", batch_size=50), part)
        for name, row in expected.items():
            assert found[source.name][name].num_windows == row.num_windows
            assert found[source.name][name].mse == pytest.approx(row.mse, rel=1e-12)
            assert found[source.name][name].mase == pytest.approx(row.mase, rel=1e-12)
            assert found[source.name][name].rmse_original == pytest.approx(row.rmse_original)


def test_a_source_that_is_not_trained_on_has_no_voice_in_model_selection(tmp_path: Path):
    data = load_forecast_data(run_over_sources(tmp_path, held_out="daily").data)
    sums = score_split({"last": repeat_last}, data, "val", batch_size=50)
    found = scores_by_source(sums, data)
    voices = [found[name]["last"].mse for name in ("hourly", "quarter")]
    assert selection_mse(sums["last"], data) == pytest.approx(sum(voices) / 2)
