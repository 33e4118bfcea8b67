"""What a training on two ranks shows: one bar on a terminal, plain lines in a pipe, or nothing."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from dist_train.config import config_to_yaml
from dist_train.launcher import RANK_VARIABLES
from dist_train.tracking_config import TrackingConfig
from tests.helpers.runs import tiny_run
from tests.helpers.terminals import ROOT, run_on_terminal

pytestmark = [pytest.mark.slow, pytest.mark.ranks]


def command(folder: Path, *further: str) -> list[str]:
    """Start two ranks as ``make train`` does, wandb included."""
    config = tiny_run(folder, tracking=TrackingConfig(wandb_mode="offline"))
    config = replace(config, train=replace(config.train, max_steps=6, eval_every=3))
    (folder / "run.yaml").write_text(config_to_yaml(config))
    return ["launch/local.sh", str(folder / "run.yaml"), *further]


def surroundings(**changes: str) -> dict[str, str]:
    plain = {key: value for key, value in os.environ.items() if key not in RANK_VARIABLES}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return plain | {"PATH": path, "RANKS": "2", "TERM": "xterm"} | changes


def test_a_pipe_gets_plain_lines_of_one_rank(tmp_path: Path):
    done = subprocess.run(
        command(tmp_path), cwd=ROOT, env=surroundings(), capture_output=True, text=True,
        check=False, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    both = done.stdout + done.stderr
    assert "\r" not in both
    assert "\x1b" not in both
    out = done.stdout.splitlines()
    assert out[0].startswith("run run: series, ")
    assert sum(line.startswith("run run: ") for line in out) == 1
    assert sum(line.startswith("wandb: offline in ") for line in out) == 1
    assert sum(line.startswith("| Time-LLM |") for line in out) == 1
    assert sum(line.startswith("best validation mse ") for line in out) == 1
    assert json.loads(out[-1])["ranks"] == 2
    last = done.stderr.splitlines()[-1]
    assert re.fullmatch(
        r"training: step 6/6, loss [\d.]+, val mse [\d.]+, best [\d.]+, [\d.]+ windows/s \[.*\]",
        last,
    )
    assert all(line.startswith("training: step ") for line in done.stderr.splitlines())


def test_quiet_leaves_the_last_line(tmp_path: Path):
    done = subprocess.run(
        command(tmp_path, "--quiet"), cwd=ROOT, env=surroundings(), capture_output=True, text=True,
        check=False, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert json.loads(line)["ranks"] == 2
    assert done.stderr == ""


def test_a_terminal_gets_one_bar(tmp_path: Path):
    done = run_on_terminal(command(tmp_path), env=surroundings(), columns=120, pipe_stdout=True)
    assert done.returncode == 0, done.shown
    assert json.loads(done.stdout.splitlines()[-1])["ranks"] == 2
    shown = done.shown
    bars = [piece for piece in shown.split("\r") if "training" in piece]
    assert len(bars) > 2, shown
    assert all(re.match(r"training +\d+%\|", piece) for piece in bars)
    assert "6/6 steps [" in bars[-1]
    assert re.search(r"loss [\d.]+, val mse [\d.]+, best [\d.]+, [\d.]+ windows/s\]", bars[-1])
    assert shown.count("\n") == 1
