"""dist_train/saved_forecasts.py: every window once, in original units, and nothing overwritten."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from pyarrow import parquet

from dist_train import saved_forecasts
from dist_train.baselines import repeat_last, seasonal_naive
from dist_train.calibration import calibrate
from dist_train.data.windows import ForecastData
from dist_train.evaluation import finish_scores, score_split
from dist_train.saved_forecasts import ForecastFile, check_path
from tests.helpers.forecast_data import long_data, wide_data
from tests.helpers.permissions import obey_permissions
from tests.helpers.ranks import run_ranks

SEQ_LEN, PRED_LEN = 24, 6
RIDGE = seasonal_naive(24)


def wide() -> ForecastData:
    rng = np.random.default_rng(0)
    values = 1000 + np.cumsum(rng.normal(size=(1600, 2)), axis=0) * np.array([1.0, 50.0])
    return wide_data(values, SEQ_LEN, PRED_LEN)


def many() -> ForecastData:
    rng = np.random.default_rng(0)
    parts = [(5 * number, np.cumsum(rng.normal(size=300 + 50 * number))) for number in range(3)]
    return long_data(parts, SEQ_LEN, PRED_LEN)


def save(rank: int, world_size: int, data: ForecastData, path: Path, batch_size: int) -> None:
    known = calibrate(repeat_last, data, batch_size=16)
    with ForecastFile(path, data, "test", calibration=known, ridge=RIDGE) as file:
        score_split(
            {"m": repeat_last, "other": RIDGE}, data, "test", batch_size=batch_size,
            observers=[file],
        )  # fmt: skip
        file.finish()


@pytest.mark.ranks
@pytest.mark.parametrize("make", [wide, many])
def test_any_number_of_ranks_writes_the_same_rows(tmp_path: Path, make):  # type: ignore[no-untyped-def]
    data = make()
    save(0, 1, data, tmp_path / "1.parquet", 7)
    for world_size in (2, 3):
        run_ranks(save, world_size, data, tmp_path / f"{world_size}.parquet", 5)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"{world_size}.parquet" for world_size in (1, 2, 3)
    ]
    alone = pd.read_parquet(tmp_path / "1.parquet")
    for world_size in (2, 3):
        pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / f"{world_size}.parquet"), alone)


@pytest.mark.parametrize("make", [wide, many])
def test_scores_of_the_file_are_the_scores_that_are_told(tmp_path: Path, make):  # type: ignore[no-untyped-def]
    data = make()
    save(0, 1, data, tmp_path / "f.parquet", 32)
    frame = pd.read_parquet(tmp_path / "f.parquet")
    sums = score_split({"m": repeat_last, "r": RIDGE}, data, "test", batch_size=64)
    told = finish_scores(sums, data)
    for name, column in (("m", "forecast"), ("r", "ridge")):
        error = frame[column] - frame["y"]
        assert np.sqrt((error**2).mean()) == pytest.approx(told[name].rmse_original, rel=1e-5)
        assert error.abs().mean() == pytest.approx(told[name].mae_original, rel=1e-5)
    scale = {
        (one.id, column): scaler.scale[number]
        for one, scaler in zip(data.series_set.series, data.scalers, strict=True)
        for number, column in enumerate(one.columns)
    }
    units = [scale[key] for key in zip(frame["unique_id"], frame["variate"], strict=True)]
    assert (((frame["forecast"] - frame["y"]) / units) ** 2).mean() == pytest.approx(
        told["m"].mse, rel=1e-5
    )


def test_each_row_is_one_step_of_one_variate_of_one_window(tmp_path: Path):
    data = wide()
    save(0, 1, data, tmp_path / "f.parquet", 32)
    frame = pd.read_parquet(tmp_path / "f.parquet")
    windows, series = data.windows["test"], data.series_set.series[0]
    assert list(frame.columns) == [
        "unique_id", "variate", "cutoff", "ds", "step", "y", "forecast", "ridge",
        "lo-80", "hi-80", "lo-95", "hi-95",
    ]  # fmt: skip
    assert len(frame) == len(windows) * 2 * PRED_LEN
    row = 0
    for window in (0, 17, len(windows) - 1):
        _, start = windows.locate(window)
        first = start + SEQ_LEN
        for variate, name in enumerate(("v0", "v1")):
            for step in range(PRED_LEN):
                row = (window * 2 + variate) * PRED_LEN + step
                found = frame.iloc[row]
                assert (found["unique_id"], found["variate"], found["step"]) == (
                    series.id, name, step + 1,
                )  # fmt: skip
                assert found["cutoff"] == series.dates[first - 1]
                assert found["ds"] == series.dates[first + step]
                assert found["y"] == series.values[first + step, variate]
                last = series.values[first - 1, variate]
                assert found["forecast"] == pytest.approx(last, rel=1e-6)
    assert row == len(frame) - 1
    for level in (80, 95):
        within = frame["y"].between(frame[f"lo-{level}"], frame[f"hi-{level}"])
        assert 100 * within.mean() == pytest.approx(level, abs=12)
    assert (frame["lo-95"] <= frame["lo-80"]).all()
    assert (frame["hi-95"] >= frame["hi-80"]).all()


def test_without_a_calibration_and_a_ridge_there_are_no_such_columns(tmp_path: Path):
    data = wide()
    with ForecastFile(tmp_path / "f.parquet", data, "val") as file:
        score_split({"m": repeat_last}, data, "val", batch_size=50, observers=[file])
        file.finish()
    assert parquet.read_schema(tmp_path / "f.parquet").names == [
        "unique_id", "variate", "cutoff", "ds", "step", "y", "forecast",
    ]  # fmt: skip


def test_row_groups_are_written_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(saved_forecasts, "ROWS_PER_GROUP", 600)
    data = wide()
    save(0, 1, data, tmp_path / "f.parquet", 10)  # 120 rows a batch
    file = parquet.ParquetFile(tmp_path / "f.parquet")
    sizes = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]
    assert sum(sizes) == len(data.windows["test"]) * 2 * PRED_LEN
    assert max(sizes) == 600
    assert len(sizes) == -(-sum(sizes) // 600)


def test_a_file_that_appears_meanwhile_stays(tmp_path: Path):
    data, path = wide(), tmp_path / "f.parquet"
    with ForecastFile(path, data, "test") as file:
        score_split({"m": repeat_last}, data, "test", batch_size=50, observers=[file])
        path.write_text("mine")
        with pytest.raises(ValueError, match="has appeared meanwhile"):
            file.finish()
    assert path.read_text() == "mine"
    assert [one.name for one in tmp_path.iterdir()] == ["f.parquet"]


def test_a_scoring_that_fails_leaves_nothing(tmp_path: Path):
    data = wide()

    def fails(batch: object) -> torch.Tensor:
        raise RuntimeError("lost")

    with (
        pytest.raises(RuntimeError, match="lost"),
        ForecastFile(tmp_path / "f.parquet", data, "test") as file,
    ):
        score_split({"m": fails}, data, "test", batch_size=50, observers=[file])
    assert list(tmp_path.iterdir()) == []


def test_places_where_no_file_can_be_made_are_refused(tmp_path: Path):
    there = tmp_path / "there.parquet"
    there.touch()
    link = tmp_path / "link.parquet"
    link.symlink_to(tmp_path / "nowhere")
    for path, told in (
        (tmp_path / "f.csv", "end the name in .parquet"),
        (there, "already exists and is not overwritten"),
        (link, "already exists and is not overwritten"),
        (tmp_path / "no" / "f.parquet", "is no folder; make it first"),
        (there / "f.parquet", "is no folder; make it first"),
    ):
        with pytest.raises(ValueError, match=rf"--save_forecasts {re.escape(str(path))}: .*{told}"):
            check_path(path)
    check_path(tmp_path / "new.parquet")


def refuse_without_permission(rank: int, world_size: int, folder: Path) -> None:
    obey_permissions()
    with pytest.raises(ValueError, match="cannot be written; name another folder"):
        check_path(folder / "f.parquet")


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path):
    tmp_path.chmod(0o500)
    run_ranks(refuse_without_permission, 1, tmp_path)
