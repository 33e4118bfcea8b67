"""dist_train/forecast_files.py: what ``timellm predict`` leaves in its folder."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from dist_train.cli import main
from dist_train.conformal import supported_levels
from dist_train.data.config import DataError
from dist_train.export import export_run
from dist_train.forecast_files import PredictOptions, predict_file
from dist_train.loading import load_run
from tests.helpers.series import write_series


def test_the_command_writes_tables_and_picture_and_never_over_them(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    history = write_series(tmp_path / "new.csv", rows=300, seed=5)
    out = tmp_path / "out"
    command = [
        "predict",
        "--run",
        str(finished_run),
        "--data.path",
        str(history),
        "--out",
        str(out),
    ]
    assert main([*command, "--level", "80", "95", "--horizon", "6"]) == 0
    written = capsys.readouterr().out.split()
    names = ["forecast.csv", "forecast.png", "retrieved.csv"]
    assert [Path(path).name for path in written] == names
    table = pd.read_csv(out / "forecast.csv")
    bounds = ["lo-95", "lo-80", "hi-80", "hi-95"]
    assert list(table.columns) == ["unique_id", "ds", "variate", "forecast", *bounds]
    assert len(table) == 12
    assert table["ds"].iloc[0] == "2020-01-13 12:00:00"
    assert (table["lo-95"] < table["hi-95"]).all()
    found = pd.read_csv(out / "retrieved.csv", parse_dates=["start", "end", "future_end"])
    assert len(found) == 10
    assert (found["future_end"] <= pd.Timestamp("2020-01-11 12:00")).all()
    np.testing.assert_allclose(found.groupby("variate")["weight"].sum(), 1, atol=1e-5)
    assert (out / "forecast.png").read_bytes().startswith(b"\x89PNG")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert main(command) == 2
    assert "forecast.csv already exists; name another folder" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_the_command_accepts_what_its_refusals_advise(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    history = write_series(tmp_path / "new.csv", rows=300, seed=5)
    table = pd.read_csv(history).assign(note="text")
    table["v1"] = table["v1"].where(table.index != 30)
    table.drop(index=[20]).rename(columns={"date": "when"}).to_csv(history, index=False)
    command = ["predict", "--run", str(finished_run), "--data.path", str(history)]
    command += ["--out", str(tmp_path / "out")]
    for advised, option in (
        ("data.date_column", "when"), ("data.dates", "as_is"), ("data.missing", "interpolate"),
    ):  # fmt: skip
        assert main(command) == 2
        assert (
            f"set {advised}" in (said := capsys.readouterr().err) or f"{advised}={option}" in said
        )
        command += [f"--{advised}", option]
    assert main(command) == 0
    assert len(pd.read_csv(tmp_path / "out/forecast.csv")) == 24
    assert main([*command[:-1], "drop"]) == 2
    assert "data.missing" in capsys.readouterr().err


def test_an_export_forecasts_the_same_file_alike(finished_run: Path, tmp_path: Path):
    history = write_series(tmp_path / "new.csv", rows=300, seed=5)
    exported = export_run(finished_run, tmp_path / "model")
    tables = []
    for number, folder in enumerate((finished_run, exported)):
        out = tmp_path / f"out{number}"
        arguments = ["--run", str(folder), "--data.path", str(history), "--out", str(out)]
        assert main(["predict", *arguments]) == 0
        tables.append((out / "forecast.csv").read_text())
    assert tables[0] == tables[1]


def test_the_picture_shows_intervals_and_histories(
    finished_run: Path, tmp_path: Path, drawn: list[Figure]
):
    predict_file(load_run(finished_run), PredictOptions(out=tmp_path / "out"))
    (figure,) = drawn
    labels = figure.axes[0].get_legend_handles_labels()[1]
    assert {"history", "Time-LLM", "80 % interval", "95 % interval"} <= set(labels)
    assert labels.count("after histories found") == 1


def test_a_run_without_calibration_says_so_and_forecasts(
    further_runs: dict[str, Path], tmp_path: Path
):
    run = replace(load_run(further_runs["plain"]), calibration=None)
    with pytest.warns(UserWarning, match="no intervals: the run has no calibration"):
        written = predict_file(run, PredictOptions(out=tmp_path / "out"))
    assert [path.name for path in written] == ["forecast.csv", "forecast.png"]
    table = pd.read_csv(tmp_path / "out/forecast.csv")
    assert list(table.columns) == ["unique_id", "ds", "variate", "forecast"]
    with pytest.raises(DataError, match="no calibration, so no intervals"):
        predict_file(run, PredictOptions(out=tmp_path / "other", levels=[80]))


def test_a_short_validation_gives_the_levels_it_supports(
    further_runs: dict[str, Path], tmp_path: Path
):
    whole = load_run(further_runs["plain"])
    assert whole.calibration is not None
    kept = supported_levels(30)
    few = replace(whole.calibration, levels=kept, num_windows=30)
    run = replace(whole, calibration=few)
    with pytest.warns(UserWarning, match="of 95 %: 30 validation windows bound no more than 92 %"):
        predict_file(run, PredictOptions(out=tmp_path / "out"))
    columns = list(pd.read_csv(tmp_path / "out/forecast.csv").columns)
    assert columns == ["unique_id", "ds", "variate", "forecast", "lo-80", "hi-80"]
    with pytest.raises(ValueError, match="level=95: 30 validation windows bound"):
        predict_file(run, PredictOptions(out=tmp_path / "other", levels=[80, 95]))


def test_an_export_asks_for_the_file_that_it_does_not_know(
    further_runs: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    exported = export_run(further_runs["plain"], tmp_path / "model")
    name = json.loads((exported / "config.json").read_text())["config"]["data"]["path"]
    write_series(tmp_path / name, rows=300, seed=5)  # another file that happens to be called so
    monkeypatch.chdir(tmp_path)
    assert main(["predict", "--run", str(exported), "--out", str(tmp_path / "out")]) == 2
    assert f"--data.path: {exported} is an exported model" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_several_series_are_one_table(further_runs: dict[str, Path], tmp_path: Path):
    predict_file(load_run(further_runs["long"]), PredictOptions(out=tmp_path, horizon=2))
    assert list(pd.read_csv(tmp_path / "forecast.csv")["unique_id"]) == [
        "a",
        "a",
        "b",
        "b",
        "c",
        "c",
    ]
