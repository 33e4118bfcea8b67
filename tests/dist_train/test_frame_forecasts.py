"""dist_train/frame_forecasts.py: forecasts of frames, named as users of Nixtla expect them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
from matplotlib.figure import Figure

from dist_train.build import build_prompt_builder
from dist_train.data.config import DataError, SourceConfig
from dist_train.frame_forecasts import (
    cross_validate_frame,
    explain_frame,
    plot_frame,
    predict_frame,
)
from dist_train.loading import LoadedRun, load_run
from dist_train.prediction import load_newest, predict
from model.backbone_files import locate_backbone

BOUNDS = ["lo-95", "lo-80", "hi-80", "hi-95"]


@pytest.fixture(scope="module")
def wide_run(finished_run: Path) -> LoadedRun:
    return load_run(finished_run)


@pytest.fixture(scope="module")
def long_run(further_runs: dict[str, Path]) -> LoadedRun:
    return load_run(further_runs["long"])


def frame_of(run: LoadedRun) -> pd.DataFrame:
    assert run.config.data.path is not None
    return pd.read_csv(run.config.data.path)


def forecast(run: LoadedRun, frame: Any, **changes: Any) -> Any:
    asked: dict[str, Any] = {"horizon": None, "level": [80, 95], "missing": "error"}
    return predict_frame(run, frame, **{**asked, **changes})


def test_a_long_frame_gets_the_columns_of_nixtla(long_run: LoadedRun):
    result = forecast(long_run, frame_of(long_run))
    assert list(result.columns) == ["unique_id", "ds", "TimeLLM", *(f"TimeLLM-{b}" for b in BOUNDS)]
    assert list(result["unique_id"]) == ["a"] * 12 + ["b"] * 12 + ["c"] * 12
    expected = predict(long_run, load_newest(long_run, None), levels=[80, 95])
    np.testing.assert_array_equal(
        result["TimeLLM"], np.concatenate([f.values[:, 0] for f in expected])
    )
    lower = np.concatenate([f.intervals[95][0][:, 0] for f in expected])
    np.testing.assert_array_equal(result["TimeLLM-lo-95"], lower)
    ordered = result[["TimeLLM-lo-95", "TimeLLM-lo-80", "TimeLLM-hi-80", "TimeLLM-hi-95"]]
    assert (ordered.diff(axis=1).iloc[:, 1:] >= 0).all(axis=None)


def test_a_wide_frame_gets_its_own_names(wide_run: LoadedRun):
    result = forecast(wide_run, pl.from_pandas(frame_of(wide_run)), level=[80, 95, 80])
    columns = [f"{name}{end}" for name in ("v0", "v1") for end in ["", *(f"-{b}" for b in BOUNDS)]]
    assert result.columns == ["date", *columns]
    assert result["date"].to_list() == list(pd.date_range("2020-01-26", periods=12, freq="h"))


def test_levels_are_written_short(wide_run: LoadedRun):
    result = forecast(wide_run, frame_of(wide_run), level=[62.5, 90.0], horizon=1)
    assert [name for name in result.columns if name.startswith("v0-")] == [
        "v0-lo-90", "v0-lo-62.5", "v0-hi-62.5", "v0-hi-90",
    ]  # fmt: skip


@pytest.mark.parametrize("level", [np.array([80, 62.5]), [np.int64(80), np.float32(62.5)]])
def test_levels_may_be_numbers_of_numpy(wide_run: LoadedRun, level: Any):
    result = forecast(wide_run, frame_of(wide_run), level=wide_run.choose_levels(level))
    pd.testing.assert_frame_equal(result, forecast(wide_run, frame_of(wide_run), level=[62.5, 80]))


def test_sources_of_other_frequencies_are_each_read_at_their_own(long_run: LoadedRun):
    known = [{"first": 0, "frequency": "h"}, {"first": 2, "frequency": "D"}]
    config = long_run.config
    sources = [SourceConfig(path="hours.csv"), SourceConfig(path="days.csv")]
    mixed = replace(
        long_run,
        series={**long_run.series, "frequency": None, "sources": known},
        config=replace(config, data=replace(config.data, path=None, sources=sources)),
        prompt_builder=build_prompt_builder(
            config, locate_backbone(config.backbone.name), ["", ""]
        ),
    )
    table = frame_of(long_run)
    hours = table[table["unique_id"] != "c"]
    filled = forecast(mixed, hours.drop(index=[100]), level=[], missing="interpolate")
    pd.testing.assert_frame_equal(filled, forecast(mixed, hours, level=[]))
    dates = pd.date_range("2024-01-01 08:00", periods=412, freq="D", tz="America/New_York")
    days = table[table["unique_id"] == "c"].assign(ds=dates[:400])
    assert list(forecast(mixed, days, level=[])["ds"]) == list(dates[400:])


@pytest.mark.parametrize("dtype", ["timestamp[us, tz=Asia/Ho_Chi_Minh][pyarrow]",
                                   "timestamp[s][pyarrow]"])  # fmt: skip
def test_frames_of_arrow_are_forecast_and_validated(wide_run: LoadedRun, dtype: str):
    table = frame_of(wide_run)
    plain = table.assign(date=pd.to_datetime(table["date"]))
    given = plain.astype({"date": dtype.replace(", tz=Asia/Ho_Chi_Minh", "")})
    if "tz" in dtype:
        given["date"] = given["date"].dt.tz_localize("Asia/Ho_Chi_Minh")
    result = forecast(wide_run, given, level=[])
    assert str(result["date"].dtype) == dtype
    first = given["date"].iloc[-1] + pd.Timedelta(hours=1)
    assert result["date"].iloc[0] == first
    asked: dict[str, Any] = {"n_windows": 2, "step_size": 3, "horizon": 4, "level": []}
    folds = cross_validate_frame(wide_run, given, **asked, missing="error")
    expected = cross_validate_frame(wide_run, plain, **asked, missing="error")
    assert str(folds["cutoff"].dtype) == dtype
    pd.testing.assert_frame_equal(
        folds.drop(columns=["date", "cutoff"]), expected.drop(columns=["date", "cutoff"])
    )
    assert folds["cutoff"].iloc[-1] == given["date"].iloc[-5]


def test_a_variate_called_as_a_column_of_cross_validation_is_refused(wide_run: LoadedRun):
    (series,) = wide_run.series["series"]
    asked: dict[str, Any] = {"n_windows": 1, "step_size": 1, "horizon": 2, "level": []}
    for name in ("cutoff", "v0-y"):
        known = {**series, "columns": ["v0", name]}
        run = replace(wide_run, series={**wide_run.series, "series": [known]})
        table = frame_of(wide_run).rename(columns={"v1": name})
        assert list(forecast(run, table, level=[]).columns) == ["date", "v0", name]
        with pytest.raises(DataError, match=f"column '{name}': two columns of what is given back"):
            cross_validate_frame(run, table, **asked, missing="error")


def test_cross_validation_tells_cutoff_and_truth(long_run: LoadedRun):
    table = frame_of(long_run)
    result = cross_validate_frame(
        long_run, table, n_windows=3, step_size=5, horizon=4, level=[80], missing="error"
    )
    names = ["unique_id", "ds", "cutoff", "TimeLLM", "TimeLLM-lo-80", "TimeLLM-hi-80", "y"]
    assert list(result.columns) == names
    assert len(result) == 3 * 3 * 4
    last = pd.Timestamp(table["ds"].iloc[-1])
    hours = [14, 9, 4]
    assert list(result["cutoff"].unique()) == [last - pd.Timedelta(hours=h) for h in hours]
    assert (result["ds"] > result["cutoff"]).all()
    truth = table.assign(ds=pd.to_datetime(table["ds"])).set_index(["unique_id", "ds"])["y"]
    found = [
        truth[id_, stamp] for id_, stamp in zip(result["unique_id"], result["ds"], strict=True)
    ]
    np.testing.assert_array_equal(result["y"], found)
    early = table.groupby("unique_id").head(400 - 9)
    again = forecast(long_run, early, horizon=4, level=[])
    second = result[result["cutoff"] == last - pd.Timedelta(hours=9)]
    np.testing.assert_allclose(second["TimeLLM"], again["TimeLLM"], rtol=1e-5)


def test_cross_validation_of_a_wide_frame_names_the_truth_of_each_variate(wide_run: LoadedRun):
    result = cross_validate_frame(
        wide_run, frame_of(wide_run), n_windows=1, step_size=1, horizon=2, level=[],
        missing="error",
    )  # fmt: skip
    assert list(result.columns) == ["date", "cutoff", "v0", "v1", "v0-y", "v1-y"]
    np.testing.assert_array_equal(result["v1-y"], frame_of(wide_run)["v1"].iloc[-2:])


def folds(run: LoadedRun, frame: Any) -> Any:
    """Two windows, which read and are compared with the newest 4 + 5 + 48 rows."""
    return cross_validate_frame(
        run, frame, n_windows=2, step_size=5, horizon=4, level=[], missing="interpolate"
    )


@pytest.mark.parametrize("what", ["gap", "empty", "infinite"])
def test_cross_validation_fills_nothing_that_its_windows_see(wide_run: LoadedRun, what: str):
    table = frame_of(wide_run)
    whole = folds(wide_run, table)

    def lacking(place: int) -> pd.DataFrame:
        if what == "gap":
            return table.drop(index=[len(table) - place])
        cell = np.nan if what == "empty" else np.inf
        return table.assign(v1=table["v1"].where(table.index != len(table) - place, cell))

    assert folds(wide_run, lacking(58)).equals(whole)
    # The oldest row that is read, a row between the cutoffs, a row that is forecast.
    for place in (57, 7, 2):
        stamp = pd.Timestamp(table["date"].iloc[-place])
        message = f"column 'v1' of series 'series' has no value at {stamp}, among the newest 57"
        with pytest.raises(DataError, match=message):
            folds(wide_run, lacking(place))


def test_cross_validation_names_the_series_that_lacks_a_value(long_run: LoadedRun):
    table = frame_of(long_run)
    last = table.index[table["unique_id"] == "b"][-10]
    with pytest.raises(DataError, match="missing='interpolate': column 'y' of series 'b' has no"):
        folds(long_run, pl.from_pandas(table.drop(index=[last])))


@pytest.mark.parametrize("kind", ["pandas", "polars"])
def test_an_explanation_is_a_frame_of_the_kind_that_was_given(long_run: LoadedRun, kind: str):
    table: Any = frame_of(long_run)
    table = table if kind == "pandas" else pl.from_pandas(table)
    explanation = explain_frame(long_run, table, missing="error")
    assert isinstance(explanation.rows, type(table))
    rows, histories = (
        part if kind == "pandas" else part.to_pandas()
        for part in (explanation.rows, explanation.histories)
    )
    assert list(rows["unique_id"]) == ["a", "b", "c"]
    shares = rows[["p_strong_down", "p_weak_down", "p_weak_up", "p_strong_up"]]
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    likely = shares.idxmax(axis=1).str.removeprefix("p_").str.replace("_", " ")
    assert list(likely) == list(rows["magnitude"])
    assert set(rows["direction"]) <= {"down", "flat", "up"}
    assert list(histories["rank"]) == list(range(1, 6)) * 3
    assert histories["start"].dtype.kind == "M"
    first = explanation.details[1].histories[2]
    there = histories[histories["unique_id"] == "b"].iloc[2]
    assert (there["history_id"], there["start"], there["weight"]) == (
        first.series, pd.Timestamp(first.start), first.weight,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["pandas", "polars"])
def test_ids_of_an_explanation_are_those_of_the_frame(
    long_run: LoadedRun, kind: str, tmp_path: Path
):
    numbered = {"a": 3, "b": 1, "c": 20}
    facts = [{**one, "id": str(numbered[one["id"]])} for one in long_run.series["series"]]
    run = replace(long_run, series={**long_run.series, "series": facts})
    table: Any = frame_of(long_run).assign(unique_id=lambda t: t["unique_id"].map(numbered))
    table = table if kind == "pandas" else pl.from_pandas(table)
    explanation = explain_frame(run, table, missing="error")
    assert list(explanation.rows["unique_id"]) == [1, 20, 3]
    assert list(explanation.histories["unique_id"]) == [1] * 5 + [20] * 5 + [3] * 5
    assert set(explanation.histories["history_id"]) <= {"a", "b", "c"}
    plot_frame(run, table, tmp_path / "p.png", unique_id=20, level=[], missing="error")
    with pytest.raises(DataError, match="unique_id=2: the frame has no such series, but 1, 20, 3"):
        plot_frame(run, table, tmp_path / "q.png", unique_id=2, level=[], missing="error")


def test_histories_that_were_not_found_have_columns_all_the_same(long_run: LoadedRun):
    table = frame_of(long_run)
    early = table.assign(ds=pd.to_datetime(table["ds"]) - pd.Timedelta(days=3650))
    found = explain_frame(long_run, pl.from_pandas(table), missing="error").histories
    none = explain_frame(long_run, pl.from_pandas(early), missing="error").histories
    assert len(none) == 0
    assert none.schema == found.schema


def test_without_a_memory_there_is_no_gate_and_no_history(further_runs: dict[str, Path]):
    run = load_run(further_runs["plain"])
    explanation = explain_frame(run, frame_of(run), missing="error")
    assert "gate" not in explanation.rows.columns
    assert len(explanation.histories) == 0


def test_gaps_are_filled_where_it_is_asked_for(wide_run: LoadedRun):
    table = frame_of(wide_run)
    whole = forecast(wide_run, table, level=[])
    with pytest.raises(DataError, match="time steps were skipped"):
        forecast(wide_run, table.drop(index=[100]), level=[])
    filled = forecast(wide_run, table.drop(index=[100]), level=[], missing="interpolate")
    np.testing.assert_array_equal(filled["v0"], whole["v0"])  # long before the window


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"level": 80}, r"level=80: must be a list of percentages such as \[80, 95\], or \[\]"),
     ({"level": "80"}, "level='80': must be a list"),
     ({"level": [0]}, "level=0: an interval's level is a percentage above 0"),
     ({"level": [True]}, "level=True"),
     ({"level": ["80"]}, "level='80': an interval's level is a percentage"),
     ({"level": np.array(80)}, r"level=array\(80\): must be a list"),
     ({"horizon": 13}, "horizon=13: the model was trained for 12 steps")],
)  # fmt: skip
def test_what_cannot_be_asked_for_is_named(wide_run: LoadedRun, changes: Any, message: str):
    with pytest.raises(ValueError, match=message):
        forecast(wide_run, frame_of(wide_run), **changes)


@pytest.mark.parametrize("key", ["n_windows", "step_size"])
@pytest.mark.parametrize("value", [0, 1.5, True])
def test_windows_and_steps_are_counted(wide_run: LoadedRun, key: str, value: Any):
    asked: dict[str, Any] = {"n_windows": 1, "step_size": 1, key: value}
    with pytest.raises(DataError, match=f"{key}={value}: must be a whole number, at least 1"):
        cross_validate_frame(
            wide_run, frame_of(wide_run), horizon=1, level=[], missing="error", **asked
        )


def test_a_short_and_an_unknown_series_are_named(long_run: LoadedRun):
    table = frame_of(long_run)
    with pytest.raises(DataError, match=r"series a: has 40 rows, the model reads data.seq_len=48"):
        forecast(long_run, table.groupby("unique_id").tail(40), level=[])
    renamed = table.assign(unique_id=table["unique_id"].replace("b", "bb"))
    with pytest.raises(DataError, match=r"series 'bb': the run was not trained on it"):
        forecast(long_run, renamed, level=[])


def test_a_forecast_is_drawn_once(long_run: LoadedRun, tmp_path: Path, drawn: list[Figure]):
    asked: dict[str, Any] = {"level": [80], "missing": "error"}
    table = frame_of(long_run)
    plot_frame(long_run, table, tmp_path / "b.png", unique_id="b", **asked)
    (figure,) = drawn
    labels = figure.axes[0].get_legend_handles_labels()[1]
    assert {"Time-LLM", "80 % interval", "after histories found"} <= set(labels)
    (line,) = (one for one in figure.axes[0].lines if one.get_label() == "history")
    assert np.asarray(line.get_ydata())[-1] == table[table["unique_id"] == "b"]["y"].iloc[-1]
    with pytest.raises(DataError, match=r"b.png: exists already; name another file"):
        plot_frame(long_run, table, tmp_path / "b.png", unique_id="b", **asked)
    with pytest.raises(DataError, match=r"unique_id='z': the frame has no such series, but a, b"):
        plot_frame(long_run, table, tmp_path / "z.png", unique_id="z", **asked)
