"""dist_train/prediction.py: the steps after the newest window, in original units, with dates."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from dist_train.data.config import DataConfig, DataError
from dist_train.data.series import load_series
from dist_train.loading import load_run
from dist_train.prediction import (
    SeriesForecast,
    check_horizon,
    load_newest,
    predict,
    rows_until,
)
from dist_train.retrieval import Neighbours, Retriever
from model.batch import ForecastInputs, RetrievedWindows
from tests.helpers.series import write_series


def file_with(folder: Path, **options: int) -> str:
    return str(write_series(folder / "new.csv", **options))


def test_continues_dates_and_units(finished_run: Path, tmp_path: Path):
    run = load_run(finished_run)
    path = file_with(tmp_path, rows=100, seed=5)
    (forecast,) = predict(run, load_newest(run, path))
    expected = pd.date_range("2020-01-05 04:00", periods=12, freq="h")
    assert list(forecast.dates) == list(expected.to_numpy())
    assert forecast.values.shape == (12, 2)
    hours = np.arange(100, 112)[:, None]
    truth = 10 + 3 * np.sin(2 * np.pi * hours / 24 + np.arange(2))
    assert np.abs(forecast.values - truth).max() < 2.0  # of a swing of 6, noise 0.5


def test_is_the_model_on_the_standardised_newest_window(finished_run: Path, tmp_path: Path):
    run = load_run(finished_run)
    path = file_with(tmp_path, rows=300)
    (forecast,) = predict(run, load_newest(run, path))
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
    predict(run, load_newest(run, file_with(tmp_path, rows=rows)))
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
    (forecast,) = predict(run, load_newest(run, str(path)))
    assert np.isfinite(forecast.values).all()


def test_the_order_of_columns_does_not_matter(finished_run: Path, tmp_path: Path):
    run = load_run(finished_run)
    path = file_with(tmp_path, rows=100)
    (straight,) = predict(run, load_newest(run, path))
    frame = pd.read_csv(path)
    frame[["date", "v1", "v0"]].to_csv(path, index=False)
    (swapped,) = predict(run, load_newest(run, path))
    np.testing.assert_array_equal(straight.values, swapped.values)


def test_without_a_file_the_runs_own_series_is_continued(finished_run: Path):
    run = load_run(finished_run)
    (forecast,) = predict(run, load_newest(run, None))
    assert pd.Timestamp(forecast.dates[0]) == pd.Timestamp("2020-01-26 00:00")


def test_refuses_a_short_file(finished_run: Path, tmp_path: Path):
    run = load_run(finished_run)
    path = file_with(tmp_path, rows=30)
    with pytest.raises(DataError, match=r"has 30 rows, the model reads data.seq_len=48"):
        predict(run, load_newest(run, path))


def test_refuses_a_missing_variate(finished_run: Path, tmp_path: Path):
    run = load_run(finished_run)
    path = file_with(tmp_path, rows=100, variates=1)
    with pytest.raises(DataError, match=r"column 'v1' is missing in data.path=.*trained on v0, v1"):
        predict(run, load_newest(run, path))


def test_further_columns_of_a_wide_file_are_left_alone(finished_run: Path, tmp_path: Path):
    run = load_run(finished_run)
    path = file_with(tmp_path, rows=100)
    (straight,) = predict(run, load_newest(run, path))
    pd.read_csv(path).assign(note="text", more=1.0).to_csv(path, index=False)
    (further,) = predict(run, load_newest(run, path))
    np.testing.assert_array_equal(straight.values, further.values)


def test_a_file_may_be_read_otherwise_than_the_training_was(finished_run: Path, tmp_path: Path):
    run = load_run(finished_run)
    path = file_with(tmp_path, rows=100)
    whole = pd.read_csv(path)
    (straight,) = predict(run, load_newest(run, path))
    lacking = whole.assign(v0=whole["v0"].where(whole.index != 20))
    lacking.rename(columns={"date": "when"}).to_csv(path, index=False)
    with pytest.raises(DataError, match="set data.date_column"):
        load_newest(run, path)
    with pytest.raises(DataError, match="'v0' has no value at row 21 .* set data.missing=interpol"):
        load_newest(run, path, {"date_column": "when"})
    read = load_newest(run, path, {"date_column": "when", "missing": "interpolate"})
    np.testing.assert_array_equal(predict(run, read)[0].values, straight.values)
    whole.drop(index=[20]).to_csv(path, index=False)
    with pytest.raises(DataError, match="take the rows in order with data.dates=as_is"):
        load_newest(run, path)
    (forecast,) = predict(run, load_newest(run, path, {"dates": "as_is"}))
    np.testing.assert_array_equal(forecast.dates, straight.dates)
    np.testing.assert_array_equal(forecast.values, straight.values)
    daily = pd.date_range("2020-01-01", periods=len(whole)).delete(20)
    whole.drop(index=[20]).assign(date=daily).to_csv(path, index=False)
    with pytest.raises(DataError, match=r"mostly not h apart, .*: bring them to h\."):
        load_newest(run, path, {"dates": "as_is"})
    whole.sample(frac=1, random_state=0).to_csv(path, index=False)
    with pytest.raises(DataError, match="no constant frequency"):
        predict(run, load_newest(run, path, {"dates": "as_is"}))


def test_how_a_file_is_read_is_refused_without_a_file(finished_run: Path):
    with pytest.raises(DataError, match="--data.missing=interpolate: it says how a file is read;"):
        load_newest(load_run(finished_run), None, {"missing": "interpolate"})


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


def test_refuses_a_file_of_another_frequency(finished_run: Path, tmp_path: Path):
    run = load_run(finished_run)
    path = Path(file_with(tmp_path, rows=100))
    frame = pd.read_csv(path)
    frame.assign(date=pd.date_range("2031", periods=100, freq="D")).to_csv(path, index=False)
    with pytest.raises(DataError, match=r"of new have the frequency D, the model was trained on h"):
        predict(run, load_newest(run, str(path)))


def series_of(forecasts: list[SeriesForecast]) -> dict[str, np.ndarray]:
    return {one.series.id: one.values for one in forecasts}


@pytest.mark.parametrize("size", [1, 2, 64])
def test_many_series_at_once_are_forecast_as_one_by_one(further_runs: dict[str, Path], size: int):
    run = load_run(further_runs["long"])
    config = replace(run.config, train=replace(run.config.train, eval_batch_size=size))
    series_set = load_newest(run, None)
    together = series_of(predict(replace(run, config=config), series_set))
    assert list(together) == ["a", "b", "c"]
    for one in series_set.series:
        alone = replace(series_set, series=(one,))
        (forecast,) = predict(run, alone)
        np.testing.assert_allclose(forecast.values, together[one.id], rtol=1e-5)
    assert not np.allclose(together["a"], together["b"])


def test_a_cutoff_forecasts_as_if_the_rest_had_not_come_yet(further_runs: dict[str, Path]):
    run = load_run(further_runs["long"])
    series_set = load_newest(run, None)
    forecasts = predict(run, series_set, cutoffs=[30, 7])
    assert [(one.series.id, one.end) for one in forecasts[:3]] == [
        ("a", 370),
        ("a", 393),
        ("b", 370),
    ]
    for number, cutoff in enumerate([30, 7]):
        first = series_set.series[0]
        early = replace(first, values=first.values[:-cutoff], dates=first.dates[:-cutoff])
        (forecast,) = predict(run, replace(series_set, series=(early,)))
        np.testing.assert_allclose(forecasts[number].values, forecast.values, rtol=1e-5)
        np.testing.assert_array_equal(forecasts[number].dates, forecast.dates)


def test_a_horizon_cuts_the_forecast_and_its_intervals(finished_run: Path):
    run = load_run(finished_run)
    series_set = load_newest(run, None)
    (whole,) = predict(run, series_set, levels=[80])
    (short,) = predict(run, series_set, levels=[80], horizon=5)
    np.testing.assert_array_equal(short.values, whole.values[:5])
    np.testing.assert_array_equal(short.dates, whole.dates[:5])
    for bound in (0, 1):
        np.testing.assert_array_equal(short.intervals[80][bound], whole.intervals[80][bound][:5])


def test_intervals_are_those_of_the_calibration_in_original_units(further_runs: dict[str, Path]):
    run = load_run(further_runs["long"])
    assert run.calibration is not None
    series_set = load_newest(run, None)
    for number, forecast in enumerate(predict(run, series_set, levels=[50, 80])):
        facts = run.series["series"][number]
        mean, scale = facts["mean"][0], facts["scale"][0]
        context = ((series_set.series[number].values[-48:] - mean) / scale)[None]
        lower, upper = run.calibration.interval(
            (forecast.values[None] - mean) / scale, context, np.array([[number]]), 80
        )
        np.testing.assert_allclose(forecast.intervals[80][0], lower[0] * scale + mean, rtol=1e-5)
        np.testing.assert_allclose(forecast.intervals[80][1], upper[0] * scale + mean, rtol=1e-5)
        assert (forecast.intervals[50][0] >= forecast.intervals[80][0]).all()


def test_a_window_is_placed_by_its_time_stamp_also_after_the_series():
    """Counted on, or the last entries would stay hidden from windows that are long past them."""
    hours = pd.date_range("2020-01-01", periods=10, freq="h").to_numpy("datetime64[ns]")
    hour = np.timedelta64(1, "h")
    assert rows_until(hours, hours[3]) == 4
    assert rows_until(hours, hours[3] + hour / 2) == 4
    assert rows_until(hours, hours[0] - hour) == 0
    assert rows_until(hours, hours[-1]) == 10
    assert rows_until(hours, hours[-1] + 5 * hour) == 15
    months = pd.date_range("2020-01-01", periods=10, freq="MS").to_numpy("datetime64[ns]")
    later = np.datetime64("2022-01-01", "ns")
    assert 10 < rows_until(months, later) <= 25  # never more than there are: 31 days each


@pytest.mark.parametrize(
    ("horizon", "message"),
    [(13, r"horizon=13: the model was trained for 12 steps \(data.pred_len\); ask for at most"),
     (0, "horizon=0: must be a whole number of steps, at least 1"),
     (2.5, "horizon=2.5: must be a whole number"), (True, "horizon=True: must be a whole")],
)  # fmt: skip
def test_refuses_a_horizon_that_there_is_not(horizon: int, message: str):
    with pytest.raises(DataError, match=message):
        check_horizon(horizon, 12)
    assert check_horizon(None, 12) == 12


def test_refuses_levels_that_the_calibration_cannot_give(finished_run: Path):
    run = load_run(finished_run)
    series_set = load_newest(run, None)
    with pytest.raises(ValueError, match=r"level=99.9: 98 validation windows bound no more than"):
        predict(run, series_set, levels=[99.9])
    with pytest.raises(DataError, match=r"no calibration, so no intervals; .* ask for level=\[\]"):
        predict(replace(run, calibration=None), series_set, levels=[80])
    assert predict(replace(run, calibration=None), series_set)[0].intervals == {}


def test_refuses_a_series_that_was_not_trained_on(further_runs: dict[str, Path]):
    run = load_run(further_runs["long"])
    series_set = load_newest(run, None)
    stranger = replace(series_set.series[0], id="d")
    with pytest.raises(DataError, match=r"series 'd': the run was not trained on it; it knows 3"):
        predict(run, replace(series_set, series=(stranger,)))


def test_refuses_a_cutoff_before_the_first_window(finished_run: Path):
    run = load_run(finished_run)
    with pytest.raises(DataError, match=r"600 rows, and 30 before the cutoff, .* fewer windows"):
        predict(run, load_newest(run, None), cutoffs=[570])
