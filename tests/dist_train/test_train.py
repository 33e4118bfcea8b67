"""dist_train/train.py: one process, started by its command, from the check to the last line."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dist_train import train
from dist_train.config import RunConfig, config_to_yaml, load_run_config
from dist_train.engine import deepspeed_json
from dist_train.launcher import RANK_VARIABLES
from dist_train.precision import DTYPES
from dist_train.reproducibility import environment
from tests.helpers.runs import tiny_run

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    config = tiny_run(tmp_path_factory.mktemp("train"), name="by-command")
    return replace(config, train=replace(config.train, max_steps=3))


def start(config: RunConfig, *options: str) -> subprocess.CompletedProcess[str]:
    path = Path(config.runs_dir).parent / "run.yaml"
    path.write_text(config_to_yaml(config))
    launched = {*RANK_VARIABLES, "TIMELLM_STARTED_AT"}
    environment = {key: value for key, value in os.environ.items() if key not in launched}
    return subprocess.run(
        [sys.executable, "-m", "dist_train.train", "--config", str(path), *options],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=200,
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(config: RunConfig) -> subprocess.CompletedProcess[str]:
    """``python -m dist_train.train`` without any launcher."""
    return start(config)


def test_the_last_line_is_the_result(trained: subprocess.CompletedProcess[str], config: RunConfig):
    assert trained.returncode == 0, trained.stderr
    line = json.loads(trained.stdout.splitlines()[-1])
    assert list(line) == ["run", "test_mse", "ridge_mse", "train_s", "total_s", "ranks"]
    assert (line["run"], line["ranks"]) == ("by-command", 1)
    assert 0 < line["train_s"] < line["total_s"]
    result = json.loads((config.run_folder / "result.json").read_text())
    assert line.items() <= result.items()
    assert result["test_mse"] == pytest.approx(result["scores"]["Time-LLM"]["mse"], abs=1e-6)
    assert result["ridge_mse"] == pytest.approx(result["scores"]["ridge"]["mse"], abs=1e-6)


def test_a_pipe_gets_plain_lines(trained: subprocess.CompletedProcess[str]):
    assert not set("\r\x1b") & set(trained.stdout + trained.stderr)
    assert trained.stderr.splitlines()[-1].startswith("training: step 3/3, loss ")


def test_the_run_folder_says_what_was_run(
    trained: subprocess.CompletedProcess[str], config: RunConfig
):
    folder = config.run_folder
    names = {path.name for path in folder.iterdir()}
    assert names >= {
        "best", "config.yaml", "deepspeed.json", "environment.json", "forecast.png",
        "metrics.jsonl", "report.md", "result.json", "calibration.safetensors", "figures",
    }  # fmt: skip
    assert load_run_config(folder / "config.yaml") == config
    settings = json.loads((folder / "deepspeed.json").read_text())
    assert settings == deepspeed_json(config, 1, DTYPES["fp32"])
    assert json.loads((folder / "environment.json").read_text()) == environment()


def test_nothing_is_left_half_written(trained: subprocess.CompletedProcess[str], config: RunConfig):
    assert [path.name for path in config.run_folder.rglob(".*")] == [".lock"]


def test_a_finished_run_is_extended_by_resume_auto_and_has_finished_again_then(
    trained: subprocess.CompletedProcess[str], config: RunConfig
):
    longer = replace(config, name="longer")
    folder = shutil.copytree(config.run_folder, longer.run_folder)
    options = ["--resume", "auto", "--train.max_steps", "5"]
    extended = start(longer, *options)
    assert extended.returncode == 0, extended.stderr
    assert "note: the run now has 5 steps, not 3" in extended.stdout
    assert json.loads((folder / "result.json").read_text())["steps"] == 5
    assert json.loads((folder / "result.json.set_aside_1").read_text())["steps"] == 3
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    again = start(longer, *options)
    assert (again.returncode, again.stdout.strip()) == (0, extended.stdout.splitlines()[-1])
    for step in folder.glob("step_*"):
        shutil.rmtree(step)
    refused = start(longer, "--resume", "auto", "--train.max_steps", "7")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "train.max_steps (5, now 7)" in refused.stderr
    left = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert left.items() <= before.items() | {(folder, folder.stat().st_mtime_ns)}


def raising(error: Exception) -> Callable[[RunConfig], dict[str, Any]]:
    def run_training(config: RunConfig, *resume: object) -> dict[str, Any]:
        raise error

    return run_training


@pytest.mark.parametrize(
    "error",
    [
        ValueError("train.seed=x: choose a number."),
        OSError("No space left on device"),
        FloatingPointError("The training loss is nan: lower train.learning_rate."),
    ],
)
def test_what_a_user_can_mend_is_one_line_and_exit_code_2(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("TIMELLM_STARTED_AT", "0")
    monkeypatch.setattr(train, "run_training", raising(error))
    assert train.main([]) == 2
    captured = capsys.readouterr()
    assert captured.err == f"error: {error}\n"
    assert captured.out == ""


def test_a_mistake_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TIMELLM_STARTED_AT", "0")
    monkeypatch.setattr(train, "run_training", raising(AssertionError("ours")))
    with pytest.raises(AssertionError, match="ours"):
        train.main([])


@pytest.mark.parametrize(("rank", "lines"), [("0", 1), ("1", 0)])
def test_only_the_first_rank_prints_the_result(
    rank: str, lines: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    result = dict.fromkeys(("run", "test_mse", "ridge_mse", "train_s", "total_s", "ranks"), 0)
    monkeypatch.setenv("TIMELLM_STARTED_AT", "0")
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr(train, "run_training", lambda config, *resume: result)
    # The deepspeed launcher adds this option unless it is told not to.
    assert train.main([f"--local_rank={rank}"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == lines
