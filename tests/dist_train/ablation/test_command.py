"""dist_train/ablation/command.py: what it refuses, what it writes, and real runs, one killed."""

import csv
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dist_train.ablation.command import main, split_config
from dist_train.config import ConfigError, config_to_yaml, load_run_config
from tests.dist_train.ablation.ablations import base_run, finish, plan_of

ROOT = Path(__file__).parents[3]


def write_grid(folder: Path) -> Path:
    path = folder / "own.grid"
    path.write_text("# name: first\n--tapr.use_tapr=false\n# name: other\n--tapr.use_tapr=true\n")
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("command")
    base_run(folder)
    write_grid(folder)
    return folder


def call(folder: Path, *options: str) -> int:
    return main(["--config", str(folder / "tiny.yaml"), "--grid", str(folder / "own.grid"),
                 *options])  # fmt: skip


def test_the_files_of_a_command_line_are_parted_from_its_overrides():
    words = ["--a.b", "1", "--config", "x=y.yaml", "--configs=3", "--config=p=q.yaml", "--c=2"]
    assert split_config(words) == (
        ["x=y.yaml", "p=q.yaml"], ["--a.b", "1", "--configs=3", "--c=2"],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seeds", "0"], "--seeds must be at least 1, got 0"),
        (["--jobs", "0"], "--jobs must be at least 1, got 0"),
        (["--only", "5", "--seeds", "2"], "--only 5: the grid own has 4 trainings with 2 seeds"),
        (["--only", "0"], "--only 0: the grid own has 6 trainings with 3 seeds: give 1 to 6"),
        (["--only", "1", "--table"], "--only and --table: each asks for something else"),
        (["--baselines", "rigde"], "--baselines rigde: give some of ridge, .*; or none"),
        (["--learning_rates", "0.1", "0.1"], "--learning_rates 0.1 0.1: must be positive, and"),
        (["--learning_rates", "-1"], "--learning_rates -1.0: must be positive"),
        (["--ranks", "3"], "baselines-.*|first-.*: train.batch_size=8 does not divide over 3"),
        (["--gram.top_kk", "3"], "Unknown key gram.top_kk: did you mean gram.top_k"),
        (["--grid", "modulse"], "--grid modulse: no such grid"),
        (["--config", "other.yaml"], "give one --config FILE, got 2|other.yaml: No such file"),
        (["--data.path", "nowhere.csv"], "nowhere.csv"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_is(
    folder: Path, options: list[str], message: str
):
    with pytest.raises(ValueError, match=message):
        call(folder, *options)
    assert not list(folder.glob("runs/tiny-ablation/**/*.log"))


def test_it_is_started_once_not_by_every_rank(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"one of 2 ranks \(WORLD_SIZE\): start it once"):
        call(folder)


def test_without_a_configuration_it_asks_for_one():
    with pytest.raises(ConfigError, match="give one --config FILE, got 0"):
        main(["--grid", "modules"])


def test_the_lines_for_an_array_are_written_once(folder: Path, tmp_path: Path):
    path = tmp_path / "cells.grid"
    assert call(folder, "--seeds", "2", "--lines", str(path)) == 0
    assert len([line for line in path.read_text().splitlines() if not line.startswith("#")]) == 4
    with pytest.raises(ConfigError, match=r"cells\.grid: exists already; name another file"):
        call(folder, "--lines", str(path))


def test_the_table_of_what_is_there_is_written_and_nothing_is_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    file = base_run(tmp_path)
    write_grid(tmp_path)
    plan = plan_of(file, seeds=2)
    for cell, mse in zip(plan.trainings[:3], (0.5, 0.6, 0.4), strict=True):
        finish(cell, mse)
    assert call(tmp_path, "--seeds", "2", "--table") == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (last["failed"], last["not_run"], last["best_on_validation"]) == (0, 1, "first")
    assert [row["mse_mean"] for row in last["rows"]] == [0.55, 0.4]
    out = plan.folder / "own"
    assert sorted(path.name for path in out.iterdir()) == [
        "ablation.csv", "ablation.md", "ablation.png",
    ]  # fmt: skip
    rows = list(csv.DictReader((out / "ablation.csv").read_text().splitlines()))
    assert rows[1]["missing"] == "1"


def start(folder: Path, *options: str) -> "subprocess.Popen[str]":
    command = [
        sys.executable, "-m", "dist_train.cli", "ablate", "--config", str(folder / "tiny.yaml"),
        "--grid", str(folder / "own.grid"), "--seeds", "2", "--baselines", "ridge", "repeat_last",
        *options,
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.slow
@pytest.mark.ranks
@pytest.mark.timeout(1800)
def test_a_killed_ablation_goes_on_and_a_failed_row_says_so(tmp_path: Path):
    run = load_run_config(base_run(tmp_path))
    long = replace(run, train=replace(run.train, max_steps=60, eval_every=10))
    (tmp_path / "tiny.yaml").write_text(config_to_yaml(long))
    grid = write_grid(tmp_path)
    grid.write_text(grid.read_text() + "# name: wild\n--train.learning_rate=1e30\n")
    cells = tmp_path / "runs/tiny-ablation/cells"

    killed = start(tmp_path)
    deadline = time.monotonic() + 600
    try:
        while not any(len(lines_of(path)) > 2 for path in cells.glob("first-*/*/metrics.jsonl")):
            assert killed.poll() is None, killed.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        killed.kill()
        killed.communicate()
    (first,) = cells.glob("first-*/seed_2021")
    # The run notices, saves and leaves; the next call would be refused its folder until then.
    while "launcher (timellm ablate" not in (first.parent / "seed_2021.log").read_text():
        assert not (first / "result.json").exists(), "ended before the kill was noticed"
        assert time.monotonic() < deadline
        time.sleep(0.1)
    while not (first / "stopped.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    stopped_at = json.loads((first / "stopped.json").read_text())["step"]
    assert 0 < stopped_at < 60

    again = start(tmp_path)
    try:
        out, error = again.communicate(timeout=1000)
    finally:
        again.kill()
    assert again.returncode == 1, error  # one row failed
    last = json.loads(out.splitlines()[-1])
    rows = {row["row"]: row for row in last["rows"]}
    assert list(rows) == ["first", "other", "wild", "ridge", "repeat last"]
    assert (rows["first"]["seeds"], rows["other"]["seeds"], rows["wild"]["seeds"]) == (2, 2, 0)
    assert (last["failed"], last["not_run"]) == (2, 0)
    assert rows["first"]["beyond_seed_noise"] is None
    text = (tmp_path / "runs/tiny-ablation/own/ablation.md").read_text()
    assert "**wild**, seed 2021, failed: " in text
    assert "not finite" in text or "nan" in text.lower()
    resumed = (first.parent / "seed_2021.log").read_text()
    assert f"resume: {first}/step_{stopped_at}" in resumed
    steps = [line["step"] for line in lines_of(first / "metrics.jsonl") if "train/loss" in line]
    assert steps == list(range(1, 61))

    # A training of its own gives the numbers of its cell.
    (second,) = cells.glob("first-*/seed_2022")
    alone = subprocess.run(
        [sys.executable, "-m", "dist_train.train", "--config", str(second / "config.yaml"),
         "--runs_dir", str(tmp_path / "alone")],
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    own = json.loads((second / "result.json").read_text())
    assert json.loads(alone.stdout.splitlines()[-1])["test_mse"] == own["test_mse"]
    assert rows["ridge"]["mse_mean"] == pytest.approx(own["ridge_mse"], abs=1e-5)
