"""dist_train/wandb_run.py: what a real training leaves for wandb, read by wandb's own reader."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dist_train import wandb_identity
from dist_train.checkpoint_writer import BEST
from dist_train.config import RunConfig, config_to_dict
from dist_train.data.windows import load_forecast_data
from dist_train.metric_catalog import HISTOGRAMS, PANEL, STEP, TABLE
from dist_train.reproducibility import code_fingerprint, environment
from dist_train.stop_signals import EXIT_STOPPED
from dist_train.tracking_config import TrackingConfig
from dist_train.wandb_run import WandbRun
from tests.helpers import wandb_files
from tests.helpers.wandb_files import Record, config_of, exit_code, of_kind, rows

ROOT = Path(__file__).parents[2]
STEPS, STOP_AFTER = 6, 3


@dataclass(frozen=True)
class Tracked:
    """A run on two ranks that was stopped after three steps and went on."""

    config: RunConfig
    starts: list[list[Record]]
    """The records of each start."""


@pytest.fixture(scope="module")
def tracked(tracked_run: RunConfig) -> Tracked:
    files = wandb_files.files(tracked_run.run_folder)
    return Tracked(tracked_run, [wandb_files.records(file) for file in files])


def lines(run: Path) -> list[dict[str, Any]]:
    found = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if k != "time_s"} for line in found]


def numbers(start: list[Record]) -> list[dict[str, Any]]:
    """Rows of metrics, as metrics.jsonl has them."""
    plain = [row for row in rows(start) if all(not isinstance(v, dict) for v in row.values())]
    return [{"step": row[STEP]} | {k: v for k, v in row.items() if k != STEP} for row in plain]


@pytest.mark.ranks
def test_two_ranks_leave_one_file_for_each_start_under_one_id(tracked: Tracked):
    folder = tracked.config.run_folder
    assert len(tracked.starts) == 2
    (name,) = {run["run_id"] for start in tracked.starts for run in of_kind(start, "run")}
    assert name == (folder / wandb_identity.ID_FILE).read_text().strip()
    assert {of_kind(start, "run")[0]["resume"] for start in tracked.starts} == {True}
    assert not (ROOT / "wandb").exists()


def test_an_upload_takes_no_longer_than_other_ranks_wait(tmp_path: Path):
    tracking = TrackingConfig(finish_timeout_s=500)
    assert WandbRun(tmp_path, tracking).upload_s == 500
    assert WandbRun(tmp_path, tracking, longest_upload_s=120).upload_s == 120


@pytest.mark.ranks
def test_every_line_of_metrics_is_a_row_at_its_step(tracked: Tracked):
    ours = lines(tracked.config.run_folder)
    theirs = [row for start in tracked.starts for row in numbers(start)]
    assert [row["step"] for row in theirs] == [line["step"] for line in ours]
    for row, line in zip(theirs, ours, strict=True):
        assert row == pytest.approx(line)
    assert max(line["step"] for line in ours) == STEPS


@pytest.mark.ranks
def test_steps_are_the_horizontal_axis(tracked: Tracked):
    for start in tracked.starts:
        metrics = of_kind(start, "metric")
        assert {"glob_name": "*", "step_metric": STEP}.items() <= metrics[1].items()
        assert metrics[2]["name"] == "val/mse"
        assert metrics[2]["summary"] == {"min": True}


@pytest.mark.ranks
def test_the_configuration_and_what_the_run_depends_on_are_there(tracked: Tracked):
    config, found = tracked.config, config_of(tracked.starts[0])
    for section, values in config_to_dict(config).items():
        assert found[section] == values, section
    facts = found["facts"]
    assert facts["code"] == code_fingerprint()
    assert facts["environment"] == environment()
    assert facts["ranks"] == 2
    data = load_forecast_data(config.data).series_set
    assert facts["data"] == {"name": data.name, "checksum": data.checksum}
    derived = json.loads((config.run_folder / "deepspeed.json").read_text())
    assert facts["deepspeed_json"] == derived
    run = of_kind(tracked.starts[0], "run")[0]
    assert (run["display_name"], run["run_group"], run["job_type"]) == (
        "two-starts", "a-group", "train",
    )  # fmt: skip
    assert (run["project"], run["tags"]) == (wandb_identity.DEFAULT_PROJECT, ["short"])


@pytest.mark.ranks
def test_a_stopped_run_is_preempted_and_the_one_that_went_on_finished(tracked: Tracked):
    first, second = tracked.starts
    assert len(of_kind(first, "preempting")) == 1
    assert of_kind(second, "preempting") == []
    assert (exit_code(first), exit_code(second)) == (EXIT_STOPPED, 0)
    (alert,) = of_kind(first, "alert")
    assert alert["title"] == "stopped"
    assert f"SIGTERM: saved at step {STOP_AFTER}" in alert["text"]


@pytest.mark.ranks
def test_each_validation_has_a_picture_and_seldom_histograms(tracked: Tracked):
    pictures = [row for start in tracked.starts for row in rows(start) if PANEL in row]
    validated = [line["step"] for line in lines(tracked.config.run_folder) if "val/mse" in line]
    assert validated == [0, 2, 4, 6]
    # The last one is of the model that was kept, with intervals.
    assert [row[STEP] for row in pictures] == [*validated, 6]
    assert "80 % intervals" in pictures[-1][PANEL]["caption"]
    assert not any("intervals" in row[PANEL]["caption"] for row in pictures[:-1])
    for place, row in enumerate(pictures):
        start = wandb_files.files(tracked.config.run_folder)[0 if place < 2 else 1].parent
        file = start / "files" / row[PANEL]["path"]
        assert file.read_bytes().startswith(b"\x89PNG")
        assert row[PANEL]["width"] > 500
    bins = [row for start in tracked.starts for row in rows(start) if "histograms/gate" in row]
    assert [row[STEP] for row in bins] == [2, 4, 6]
    for row in bins:
        assert row.keys() == HISTOGRAMS.keys() | {STEP}
        # Rank 0's half of a batch of 8 windows, with two variates each.
        assert {sum(row[name]["values"]) for name in HISTOGRAMS} == {8}


@pytest.mark.ranks
def test_the_end_leaves_table_report_checkpoint_and_summary(tracked: Tracked):
    folder, last = tracked.config.run_folder, tracked.starts[1]
    result = json.loads((folder / "result.json").read_text())
    (row,) = [row for row in rows(last) if TABLE in row]
    file = wandb_files.files(folder)[1].parent / "files" / row[TABLE]["path"]
    table = json.loads(file.read_text())
    assert table["columns"][:2] == ["model", "MSE"]
    assert {name: mse for name, mse, *_ in table["data"]} == pytest.approx(
        {name: score["mse"] for name, score in result["scores"].items()}
    )
    artifacts = {one["type"]: one for one in of_kind(last, "artifact")}
    report = {item["path"] for item in artifacts["report"]["manifest"]["contents"]}
    assert {"report.md", "result.json"} <= report
    model = artifacts["model"]["manifest"]["contents"]
    assert {item["path"] for item in model} == {
        f"{BEST}/{path.name}" for path in (folder / BEST).iterdir()
    }
    assert all(item["ref"].startswith(folder.resolve().as_uri()) for item in model)
    summary: dict[str, Any] = {}
    for one in of_kind(last, "summary"):
        summary |= one["update"]
    assert summary["test_mse"] == result["test_mse"]
    assert summary["identity"] == result["identity"]


@pytest.mark.ranks
def test_all_of_it_lies_in_the_folder_of_the_run(tracked: Tracked):
    folder = tracked.config.run_folder
    for start in tracked.starts:
        for artifact in of_kind(start, "artifact"):
            for item in artifact["manifest"]["contents"]:
                if "local_path" in item:
                    assert Path(item["local_path"]).is_relative_to(folder.resolve())


def test_a_run_without_wandb_leaves_nothing_of_it(finished_run: Path):
    assert not list(finished_run.glob("wandb*"))


SCRIPT = """
import sys, os
from pathlib import Path
import numpy as np
from dist_train import wandb_run
from dist_train.tracking import Tracker
from dist_train.tracking_config import TrackingConfig
from dist_train.wandb_run import WandbRun
folder = Path(sys.argv[1])
"""


def script(folder: Path, code: str, **changes: str) -> "subprocess.CompletedProcess[str]":
    """Run a few lines in a process of their own, where wandb is imported for the first time."""
    plain = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    # Nobody's key is found, and nobody's settings.
    plain |= {"HOME": str(folder), "NETRC": str(folder / "netrc"), "WANDB_CONFIG_DIR": str(folder)}
    return subprocess.run(
        [sys.executable, "-c", SCRIPT + code, str(folder)], cwd=ROOT, env=plain | changes,
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


def test_a_folder_that_cannot_be_written_is_told_once_and_nothing_else_happens(tmp_path: Path):
    (tmp_path / "wandb").touch()  # where the folder should be
    done = script(
        tmp_path,
        """
run = WandbRun(folder, TrackingConfig(wandb_mode="offline"))
assert run.start("a", {}) == ""
with Tracker(folder, enabled=True, wandb=run) as tracker:
    tracker.log(1, {"train/loss": 0.5})
    tracker.alert("t", "x", "WARN")
assert not tracker.takes_pictures
""",
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("warning: wandb cannot be started (FileExistsError: ")
    assert done.stderr.endswith("; the training goes on without it.\n")
    assert done.stderr.count("\n") == 1
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["train/loss"] == 0.5


def test_a_service_that_dies_is_told_and_the_training_goes_on(tmp_path: Path):
    done = script(
        tmp_path,
        """
import signal, time
run = WandbRun(folder, TrackingConfig(wandb_mode="offline"))
assert "offline in" in run.start("a", {})
children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
assert children, "wandb has no service"
with Tracker(folder, enabled=True, wandb=run) as tracker:
    tracker.log(1, {"train/loss": 0.5})
    for child in children:
        os.kill(int(child), signal.SIGKILL)
    time.sleep(0.5)
    for step in range(2, 40):
        tracker.log(step, {"train/loss": 0.5})
    tracker.histograms(40, lambda: {"histograms/gate": np.arange(5.0)})
print("went on")
""",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "went on\n"
    assert 1 <= done.stderr.count("warning: wandb ") <= 2, done.stderr
    assert "Traceback" not in done.stderr
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 39


def test_a_server_that_does_not_answer_leaves_the_run_offline(tmp_path: Path):
    done = script(
        tmp_path,
        """
wandb_run.START_TIMEOUT_S = 8.0
run = WandbRun(folder, TrackingConfig(wandb_mode="auto"))
print(run.start("a", {}))
run.log(1, {"train/loss": 0.5})
run.finish()
""",
        WANDB_API_KEY="a" * 40,
        WANDB_BASE_URL="http://127.0.0.1:9",
    )
    assert done.returncode == 0, done.stderr
    assert "offline in" in done.stdout
    assert done.stderr.startswith("warning: wandb does not answer (")
    assert "this run is kept offline" in done.stderr
    (file,) = wandb_files.files(tmp_path)
    assert rows(wandb_files.records(file)) == [{STEP: 1, "train/loss": 0.5}]
    assert "a" * 40 not in done.stdout + done.stderr


KEYS: dict[str, Callable[[Path], dict[str, str]]] = {
    "environment": lambda folder: {"WANDB_API_KEY": "a" * 40},
    "netrc": lambda folder: _netrc(folder, "machine api.wandb.ai login user password " + "b" * 40),
    "another machine": lambda folder: _netrc(folder, "machine example.org login u password p"),
    "nothing": lambda folder: {},
}


def _netrc(folder: Path, text: str) -> dict[str, str]:
    (folder / "netrc").write_text(text + "\n")
    return {}


@pytest.mark.parametrize("where", KEYS)
def test_a_key_is_looked_for_where_wandb_keeps_it(tmp_path: Path, where: str):
    code = "print(wandb_run.has_key())"
    done = script(tmp_path, code, **KEYS[where](tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{where in ('environment', 'netrc')}\n"
    assert done.stderr == ""
