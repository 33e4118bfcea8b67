"""benchmarks/coverage.py: what it prints is what was measured."""

import json
from pathlib import Path

import pytest

from benchmarks.coverage import main, of_ridge
from dist_train.config import load_saved_config
from dist_train.data.windows import load_forecast_data


def test_a_trained_run_stands_beside_its_ridge(
    finished_run: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["--runs", str(finished_run)]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    row = json.loads(last)["series"]
    result = json.loads((finished_run / "result.json").read_text())
    data = load_forecast_data(load_saved_config(finished_run / "config.yaml").data)
    ridge = {one["level"]: one for one in of_ridge(data)}
    for level in (80, 95):
        assert row[f"coverage_{level}"] == result[f"coverage_{level}"]
        assert row[f"coverage_{level}_ridge"] == round(ridge[float(level)]["covered"], 2)
        assert row[f"width_{level}_ridge"] == round(ridge[float(level)]["width"], 4)
    assert sum(line.startswith("| series |") for line in lines) == 4


def test_training_leaves_out_weather_without_its_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    from benchmarks import coverage

    monkeypatch.delenv("TIMELLM_DATA_ROOT", raising=False)
    started: list[list[str]] = []
    monkeypatch.setattr(
        coverage.subprocess, "run", lambda command, **settings: started.append(command)
    )
    assert coverage.train_all(tmp_path) == [tmp_path / "quickstart"]
    assert [command[1] for command in started] == ["configs/quickstart.yaml"]
    assert "weather is left out" in capsys.readouterr().err
    monkeypatch.setenv("TIMELLM_DATA_ROOT", str(tmp_path))
    assert coverage.train_all(tmp_path) == [tmp_path / "quickstart", tmp_path / "weather"]
