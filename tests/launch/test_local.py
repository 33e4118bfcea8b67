"""launch/local.sh: one command trains, and says honestly whether it has."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from dist_train.config import config_to_yaml
from model.config import GramConfig
from tests.helpers.runs import tiny_run

pytestmark = [
    pytest.mark.ranks,
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds ranks in /proc"),
]

ROOT = Path(__file__).parents[2]
RANKS = min(2, torch.cuda.device_count()) or 2
KEYS = ["run", "test_mse", "ridge_mse", "train_s", "total_s", "ranks"]


@dataclass(frozen=True, kw_only=True)
class Finished:
    """What a call of local.sh left behind."""

    code: int
    out: str
    error: str
    seconds: float

    @property
    def last_line(self) -> str:
        return self.out.splitlines()[-1]


def start(config: Path, *options: str) -> "subprocess.Popen[str]":
    launched = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT", "TIMELLM_STARTED_AT"}
    environment = {key: value for key, value in os.environ.items() if key not in launched}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    environment |= {"RANKS": str(RANKS), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        ["launch/local.sh", str(config), *options], cwd=ROOT, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


def finish(process: "subprocess.Popen[str]", config: Path) -> Finished:
    started = time.monotonic()
    with process:
        try:
            out, error = process.communicate(timeout=150)
        finally:
            process.kill()
            for rank in ranks_of(config):
                os.kill(rank, signal.SIGKILL)
    seconds = time.monotonic() - started
    return Finished(code=process.returncode, out=out, error=error, seconds=seconds)


def ranks_of(config: Path) -> list[int]:
    """Process ids of the training ranks that read ``config``, launchers left out."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # a process may end while it is looked at
            command = (folder / "cmdline").read_bytes().split(b"\0")
            is_rank = re.search(rb"(^|\0)LOCAL_RANK=", (folder / "environ").read_bytes())
            if is_rank and {b"dist_train.train", os.fsencode(config)} <= set(command):
                found.append(int(folder.name))
    return found


def content(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("local")
    run = tiny_run(folder, name="in-the-file", gram=GramConfig(use_gram=False))
    path = folder / "run.yaml"
    path.write_text(config_to_yaml(replace(run, train=replace(run.train, max_steps=4))))
    return path


@dataclass(frozen=True, kw_only=True)
class Killed:
    """A run whose ranks were killed in the middle of training."""

    call: Finished
    folder: Path
    content: dict[str, bytes]


@pytest.fixture(scope="module")
def killed(config: Path) -> Killed:
    folder = config.parent / "runs/x"
    endless = ["--train.max_steps", "1000000", "--train.max_epochs", "1000000"]
    endless += ["--train.patience", "1000000"]
    process = start(config, "--name", "x", *endless)
    metrics, deadline = folder / "metrics.jsonl", time.monotonic() + 100
    while not (metrics.exists() and "train/loss" in metrics.read_text()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "the training has not begun"
        time.sleep(0.1)
    ranks = ranks_of(config)
    assert len(ranks) == RANKS
    for rank in ranks:
        os.kill(rank, signal.SIGKILL)
    return Killed(call=finish(process, config), folder=folder, content=content(folder))


@pytest.fixture(scope="module")
def trained(config: Path, killed: Killed) -> Finished:
    """The call after the kill, under the same name."""
    return finish(start(config, "--name", "x"), config)


def test_a_killed_run_is_not_called_a_success(killed: Killed):
    assert killed.call.code not in (0, 2)  # 2 is a refusal
    assert "error: the run did not finish" in killed.call.error
    assert str(killed.folder) in killed.call.error
    assert not (killed.folder / "result.json").exists()
    assert (killed.folder / "best/manifest.json").exists()


def test_the_next_run_starts_beside_a_killed_one_and_leaves_it_alone(
    killed: Killed, trained: Finished
):
    assert trained.code == 0, trained.error
    assert json.loads(trained.last_line)["run"] == "x-2"
    assert sorted(path.name for path in killed.folder.parent.iterdir()) == ["x", "x-2"]
    assert content(killed.folder) == killed.content


def test_the_last_line_is_json_and_printed_once(trained: Finished, killed: Killed):
    line = json.loads(trained.last_line)
    assert list(line) == KEYS
    assert line["ranks"] == RANKS
    result = json.loads((killed.folder.parent / "x-2/result.json").read_text())
    assert line.items() <= result.items()
    # The clock starts with the script: its own start and the launcher's count.
    assert line["train_s"] < line["total_s"] < trained.seconds + 1
    assert [text for text in trained.out.splitlines() if text.startswith("{")] == [
        trained.last_line
    ]


def test_the_same_call_again_only_repeats_the_result(config: Path, trained: Finished):
    before = content(config.parent / "runs")
    again = finish(start(config, "--name", "x"), config)
    assert (again.code, again.last_line) == (0, trained.last_line)
    assert "finished before" in again.out
    assert again.seconds < 10
    assert content(config.parent / "runs") == before
