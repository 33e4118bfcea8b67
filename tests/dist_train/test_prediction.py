"""dist_train/prediction.py: the steps after the newest window, in original units, with dates."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from dist_train.data.config import DataConfig, DataError
from dist_train.data.series import load_series
from dist_train.loading import load_run
from dist_train.prediction import load_newest, predict, write_forecasts
from dist_train.retrieval import Neighbours, Retriever
from model.batch import ForecastInputs, RetrievedWindows
from tests.helpers.series import write_series


def file_with(folder: Path, **options: int) -> str:
    return str(write_series(folder / "new.csv", **options))


def test_continues_dates_and_units(finished_run: Path, tmp_path: Path):
    run = load_run(finished_run)
    path = file_with(tmp_path, rows=100, seed=5)
    (forecast,) = predict(run, load_newest(run.config, path))
    expected = pd.date_range("2020-01-05 04:00", periods=12, freq="h")
    assert list(forecast.dates) == list(expected.to_numpy())
    assert forecast.values.shape == (12, 2)
    hours = np.arange(100, 112)[:, None]
    truth = 10 + 3 * np.sin(2 * np.pi * hours / 24 + np.arange(2))
    assert np.abs(forecast.values - truth).max() < 2.0  # of a swing of 6, noise 0.5


def test_is_the_model_on_the_standardised_newest_window(finished_run: Path, tmp_path: Path):
    run = load_run(finished_run)
    path = file_with(tmp_path, rows=300)
    (forecast,) = predict(run, load_newest(run.config, path))
    facts = run.series["series"][0]
    mean, scale = np.array(facts["mean"]), np.array(facts["scale"])
    values = pd.read_csv(path)[["v0", "v1"]].to_numpy()[-48:]
    context = ((values - mean) / scale)[None].astype(np.float32)
    assert run.prompt_builder is not None
    prompts = run.prompt_builder(context)
    assert prompts is not None
    inputs = ForecastInputs(
        context=torch.from_numpy(context), prompt_ids=prompts[0], prompt_mask=prompts[1]
    )
    assert run.retriever is not None
    neighbours = run.retriever.search(
        inputs.context, np.array([0]), np.array([300 - 48]), past_only=True
    )
    with torch.no_grad():
        output = run.module(inputs, run.retriever.fetch(neighbours))
    expected = output.forecast[0].double().numpy() * scale + mean
    np.testing.assert_allclose(forecast.values, expected, rtol=1e-6)


@pytest.mark.parametrize(("rows", "found"), [(100, 0), (109, 8), (300, 10), (600, 10)])
def test_only_histories_whose_futures_end_before_the_forecast_are_used(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int, found: int
):
    run, seen = load_run(finished_run), []
    fetch = Retriever.fetch

    def watched(self: Retriever, neighbours: Neighbours) -> RetrievedWindows:
        seen.append(neighbours.ids)
        return fetch(self, neighbours)

    monkeypatch.setattr(Retriever, "fetch", watched)
    predict(run, load_newest(run.config, file_with(tmp_path, rows=rows)))
    (ids,) = seen
    assert run.retriever is not None
    used = ids[ids >= 0]
    ends = run.retriever.bank.starts(used) + 48 + 12
    assert len(used) == found
    assert (ends <= rows - 48).all()  # before the newest window even begins


def test_a_file_from_after_the_training_may_use_all_of_the_memory(
    finished_run: Path, tmp_path: Path
):
    run = load_run(finished_run)
    path = Path(file_with(tmp_path, rows=60))
    frame = pd.read_csv(path)
    frame["date"] = pd.date_range("2031", periods=60, freq="h")
    frame.to_csv(path, index=False)
    (forecast,) = predict(run, load_newest(run.config, str(path)))
    assert np.isfinite(forecast.values).all()


def test_the_order_of_columns_does_not_matter(finished_run: Path, tmp_path: Path):
    run = load_run(finished_run)
    path = file_with(tmp_path, rows=100)
    (straight,) = predict(run, load_newest(run.config, path))
    frame = pd.read_csv(path)
    frame[["date", "v1", "v0"]].to_csv(path, index=False)
    (swapped,) = predict(run, load_newest(run.config, path))
    np.testing.assert_array_equal(straight.values, swapped.values)


def test_without_a_file_the_runs_own_series_is_continued(finished_run: Path):
    run = load_run(finished_run)
    (forecast,) = predict(run, load_newest(run.config, None))
    assert pd.Timestamp(forecast.dates[0]) == pd.Timestamp("2020-01-26 00:00")


def test_writes_table_and_picture_once(finished_run: Path, tmp_path: Path):
    run = load_run(finished_run)
    forecasts = predict(run, load_newest(run.config, None))
    table, figure = write_forecasts(tmp_path / "out", forecasts)
    rows = pd.read_csv(table)
    assert list(rows.columns) == ["unique_id", "ds", "variate", "forecast"]
    assert len(rows) == 24
    assert figure.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(DataError, match=r"forecast.csv already exists; name another folder"):
        write_forecasts(tmp_path / "out", forecasts)


def test_refuses_a_short_file(finished_run: Path, tmp_path: Path):
    run = load_run(finished_run)
    path = file_with(tmp_path, rows=30)
    with pytest.raises(DataError, match=r"has 30 rows, the model reads data.seq_len=48"):
        predict(run, load_newest(run.config, path))


def test_refuses_a_missing_variate(finished_run: Path, tmp_path: Path):
    run = load_run(finished_run)
    path = file_with(tmp_path, rows=100, variates=1)
    with pytest.raises(DataError, match="column 'v1' is missing"):
        predict(run, load_newest(run.config, path))


def test_refuses_dates_without_a_frequency(finished_run: Path, tmp_path: Path):
    run = load_run(finished_run)
    path = Path(file_with(tmp_path, rows=100))
    frame = pd.read_csv(path).drop(index=[50])
    frame.to_csv(path, index=False)
    series_set = load_series(DataConfig(path=str(path), dates="as_is"))
    if series_set.frequency is not None:
        pytest.skip("one gap leaves the frequency known")
    with pytest.raises(DataError, match="no constant frequency"):
        predict(run, series_set)
