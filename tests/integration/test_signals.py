"""Real signals to a real ``deepspeed`` job: saved, ended with 75, gone on with, nothing left."""

import json
import os
import shutil
import subprocess
import sys
import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dist_train.checkpoint import load_checkpoint
from dist_train.config import RunConfig, config_to_yaml
from dist_train.run_folder import step_folders
from dist_train.stop_signals import EXIT_STOPPED
from model.config import GramConfig
from tests.helpers.interrupted import run_jobs
from tests.helpers.jobs import MARK, ROOT, free_port, is_port_free, wait_until_gone
from tests.helpers.runs import numbers, tiny_run
from tests.helpers.signalled import Sent

pytestmark = [
    pytest.mark.slow,
    pytest.mark.ranks,
    pytest.mark.timeout(1800),
]  # seven starts of DeepSpeed in one fixture

STEPS, EVAL_EVERY = 12, 6


@dataclass(frozen=True, kw_only=True)
class Start:
    """What one start of the launcher left behind."""

    code: int
    codes: list[str]
    """Exit codes of the ranks; those that did not end of themselves are missing."""

    error: str
    stopped: dict[str, Any] | None
    """stopped.json."""

    steps: list[int]
    """Of the checkpoints step_<n>, the newest first; all of them verify."""

    metrics: int
    """Lines in metrics.jsonl."""

    forecasts: list[int]
    """How many batches of the validation, or of the test split, each rank had begun."""

    left: list[str]
    """Processes, shared memory and temporary files that are still there, and the port."""


class Jobs:
    """Starts of a run under the deepspeed launcher."""

    def __init__(self, folder: Path, config: RunConfig) -> None:
        self.folder, self.config = folder, config
        self.file = folder / "run.yaml"
        self.file.write_text(config_to_yaml(config))

    def start(self, *options: str, **sent: Any) -> Start:
        notes, temporary = self.folder / "notes", self.folder / "tmp"
        for place in (notes, temporary):
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
        mark, port = uuid.uuid4().hex, free_port()
        environment = os.environ | Sent(folder=str(notes), **sent).environment() | {
            MARK: mark, "TMPDIR": str(temporary), "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
        }  # fmt: skip
        shared = shared_memory()
        done = subprocess.run(
            ["deepspeed", "--log_level", "error", "--no_local_rank", "--num_gpus", "2",
             "--master_port", str(port), "--module", "tests.helpers.signalled",
             "--config", str(self.file), *options],
            cwd=ROOT, env=environment, text=True, timeout=280, check=False,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip
        left = [f"process {pid}" for pid in wait_until_gone(mark, 20)]
        left += sorted(shared_memory() - shared)
        left += [str(path) for path in temporary.rglob("*")]
        left += [] if is_port_free(port) else [f"port {port}"]
        assert (notes / "sent").exists() == bool(sent), done.stderr
        run = self.config.run_folder
        mark_file, metrics = run / "stopped.json", run / "metrics.jsonl"
        return Start(
            code=done.returncode,
            codes=[path.read_text() for path in sorted(notes.glob("code.*"))],
            error=done.stderr,
            stopped=json.loads(mark_file.read_text()) if mark_file.exists() else None,
            steps=[load_checkpoint(path).step for path in step_folders(run)],
            metrics=len(metrics.read_text().splitlines()) if metrics.exists() else 0,
            forecasts=[int(path.read_text()) for path in notes.glob("forecasts.*")],
            left=left,
        )


def shared_memory() -> set[str]:
    """Segments of torch whose process has ended, such as batches nobody has taken.

    Others on this machine have theirs, too. Semaphores of a forked worker have no name.
    """
    segments = Path("/dev/shm").glob("torch_*")
    return {str(path) for path in segments if not Path("/proc", path.name.split("_")[1]).exists()}


def run_of(folder: Path, name: str) -> RunConfig:
    gram = GramConfig(use_gram=True, d_repr=16, refresh_every=4, refresh_lag=2)
    base = tiny_run(folder, name=name, gram=gram)
    backbone = folder / "backbone"  # the helper's own is a folder of this process
    if not backbone.exists():
        shutil.copytree(base.backbone.name, backbone)
    train = replace(
        base.train, max_steps=STEPS, eval_every=EVAL_EVERY, eval_batch_size=4, log_every=2
    )
    return replace(
        base,
        train=train,
        model=replace(base.model, dropout=0.1, anchor="none"),
        backbone=replace(base.backbone, name=str(backbone)),
    )


WORKERS = ("--data.num_workers", "2")
STOPS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "one rank": ((), {"signal": "SIGUSR1", "to": "1", "step": 2}),
    "all ranks": (WORKERS, {"signal": "SIGTERM", "to": "all", "step": 4}),
    "validation": (
        (), {"signal": "SIGINT", "to": "0", "moment": "validation", "step": EVAL_EVERY},
    ),
    "launcher": (WORKERS, {"signal": "SIGTERM", "to": "launcher", "step": 9}),
    "runner": ((), {"signal": "SIGTERM", "to": "runner", "step": 11}),
    "scoring": ((), {"signal": "SIGUSR2", "to": "1", "moment": "scoring", "step": STEPS}),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("signals")


@pytest.fixture(scope="module")
def starts(folder: Path) -> dict[str, Start]:
    """A run that is stopped six times and ends at the seventh start."""
    jobs = Jobs(folder, run_of(folder, "stopped"))
    found: dict[str, Start] = {}
    for name, (options, sent) in STOPS.items():
        found[name] = jobs.start("--resume", "auto", *options, **sent)
        if found[name].stopped is None:
            return found  # the others would have nothing to go on from
    return found | {"last": jobs.start("--resume", "auto")}


@pytest.mark.parametrize("name", STOPS)
def test_every_rank_saves_the_same_step_and_ends_with_75(starts: dict[str, Start], name: str):
    start, sent = starts[name], STOPS[name][1]
    assert start.codes == [str(EXIT_STOPPED)] * 2, start.error
    # A launcher passes it on a little later.
    steps = [
        sent["step"] + late for late in range(2 if sent["to"] in ("launcher", "runner") else 1)
    ]
    assert start.stopped is not None
    assert start.stopped["signal"] == sent["signal"]
    assert start.stopped["step"] == start.steps[0]
    assert start.steps[0] in steps
    # The launchers have codes of their own where they are signalled themselves.
    expected = {"launcher": 1, "runner": -15}.get(sent["to"], EXIT_STOPPED)
    assert start.code == expected
    assert "Traceback" not in start.error
    assert "error" not in start.error


@pytest.mark.parametrize("name", [*STOPS, "last"])
def test_nothing_is_left_behind(starts: dict[str, Start], name: str):
    assert starts[name].left == []


@pytest.mark.parametrize("name", ["validation", "scoring"])
def test_a_validation_or_the_scoring_is_left_at_once(starts: dict[str, Start], name: str):
    begun = starts[name].forecasts
    assert len(begun) == 2
    assert max(begun) <= 3, "the signal came in the second batch"


def test_a_run_that_was_stopped_six_times_ends_as_one_that_was_not(
    folder: Path, starts: dict[str, Start]
):
    assert starts["last"].codes == ["0", "0"], starts["last"].error
    assert starts["last"].stopped is None
    whole, stopped = run_of(folder, "whole"), run_of(folder, "stopped")
    run_jobs([(whole, None, None)], 2)
    lines = [numbers(config.run_folder) for config in (whole, stopped)]
    assert lines[0] == lines[1]
    assert len(lines[0]) >= STEPS // 2 + 3
    one, two = (load_checkpoint(step_folders(c.run_folder)[0]) for c in (whole, stopped))
    assert one.step == two.step == STEPS
    for part in ("model", "optimizer", "ranks"):
        mine, theirs = getattr(one, part), getattr(two, part)
        assert all(torch.equal(theirs[name], value) for name, value in mine.items()), part
    results = [
        json.loads((config.run_folder / "result.json").read_text()) for config in (whole, stopped)
    ]
    assert results[0]["test_mse"] == results[1]["test_mse"]


def test_a_signal_in_the_start_up_ends_with_75_and_leaves_no_mark(folder: Path):
    jobs = Jobs(folder, run_of(folder, "early"))
    start = jobs.start(signal="SIGUSR2", to="1", moment="start-up")
    assert start.code == EXIT_STOPPED, start.error
    assert start.codes == [str(EXIT_STOPPED)] * 2, start.error
    assert start.stopped is None
    assert start.steps == []
    assert start.left == []
    assert "Traceback" not in start.error


def test_a_second_ctrl_c_ends_at_once_without_saving(folder: Path):
    jobs = Jobs(folder, run_of(folder, "impatient"))
    start = jobs.start(signal="SIGINT", to="all", step=3, times=2)
    assert start.code not in (0, EXIT_STOPPED)
    assert start.stopped is None
    assert start.steps == []
    assert start.left == []
