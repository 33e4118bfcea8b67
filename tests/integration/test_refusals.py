"""Refusals through the real commands: what is wrong, the value, the remedy; at once, on all ranks.

A user's mistake must cost seconds, not the minutes in which models are loaded and ranks meet: so
torch cannot be imported in most of these tests, and nothing may have been written.
"""

import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dist_train.config import ConfigError, RunConfig, config_to_yaml
from dist_train.launcher import RANK_VARIABLES
from dist_train.preflight import check
from dist_train.session import train_and_score
from tests.helpers.ranks import run_ranks
from tests.helpers.runs import tiny_run
from tests.helpers.series import write_series

ROOT = Path(__file__).parents[2]
LIMIT_S = 60.0  # 10 s on a quiet machine; tests share theirs, which may be slow
HEAVY = ("torch", "transformers", "deepspeed")
COMMANDS = {
    "train": ("-m", "dist_train.cli", "train"),
    "local": ("-m", "launch.local", "{ranks}"),
}


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """What a user got wrong, and what the message must say."""

    options: tuple[str, ...]
    key: str
    value: str
    remedy: str
    ranks: int = 1


MISTAKES = {
    "missing file": Mistake(
        options=("--data.path", "nowhere.csv"),
        key="data.path", value="nowhere.csv does not exist", remedy="check the path",
    ),
    "missing column": Mistake(
        options=("--data.columns", "[v0, vv1]"),
        key="data.columns", value="no column 'vv1'", remedy="did you mean 'v1'? The columns are v0",
    ),
    "missing date column": Mistake(
        options=("--data.date_column", "when"),
        key="data.date_column", value="when", remedy="set data.date_column to the one with the",
    ),
    "no value": Mistake(
        options=("--data.path", "{folder}/nan.csv"),
        key="column 'v1'", value="no value at row 101", remedy="set data.missing=interpolate",
    ),
    "dates that go back": Mistake(
        options=("--data.path", "{folder}/back.csv"),
        key="data.dates=strict", value="row 201 has the time stamp 2020-01-07 06:00:00 after "
        "2020-01-09 07:00:00: the dates go back", remedy="Correct the dates, or",
    ),
    "a date twice": Mistake(
        options=("--data.path", "{folder}/twice.csv"),
        key="data.dates=strict", value="row 202 has the time stamp 2020-01-09 08:00:00 after "
        "2020-01-09 08:00:00: a duplicated time stamp", remedy="data.dates=as_is",
    ),
    "shorter than a window": Mistake(
        options=("--data.path", "{folder}/short.csv"),
        key="data.seq_len=48 and data.pred_len=12", value="series 'short' has 50 rows",
        remedy="104 rows are needed; bring more, or shorten data.seq_len",
    ),
    "unknown key": Mistake(
        options=("--train.patients", "3"),
        key="train.patients", value="Unknown key", remedy="did you mean train.patience?",
    ),
    "wrong type": Mistake(
        options=("--train.patience", "many"),
        key="train.patience", value="many", remedy="expected a",
    ),
    "more layers than there are": Mistake(
        options=("--backbone.llm_layers", "9"),
        key="backbone.llm_layers=9", value="has 4 layers", remedy="use at most 4",
    ),
    "batch and ranks": Mistake(
        options=("--train.batch_size", "8"), ranks=3,
        key="train.batch_size=8", value="3 ranks", remedy="choose a multiple of 3",
    ),
    "batch larger than the data": Mistake(
        options=("--train.batch_size", "600"),
        key="train.batch_size=600", value="361 training windows", remedy="lower it",
    ),
    "unknown backbone": Mistake(
        options=("--backbone.name", "gpt7"),
        key="backbone.name=gpt7", value="not in the Hugging Face cache", remedy="give a folder",
    ),
    "a folder that is a file": Mistake(
        options=("--runs_dir", "{folder}/nan.csv"),
        key="runs_dir=", value="nan.csv is a file", remedy="name a folder",
    ),
    "configuration that is not there": Mistake(
        options=("--config", "nowhere.yaml"),
        key="--config nowhere.yaml", value="No such file", remedy="give the path of a YAML file",
    ),
}  # fmt: skip
ON_TWO_RANKS = {
    "torchrun": ("no value", "unknown key"),
    "deepspeed": ("missing file", "batch of seven"),
}
MISTAKES_OF_RANKS = MISTAKES | {
    "batch of seven": Mistake(
        options=("--train.batch_size", "7"),
        key="train.batch_size=7", value="2 ranks", remedy="choose a multiple of 2",
    )
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good configuration with its series, and series with one defect each."""
    folder = tmp_path_factory.mktemp("refusals")
    (folder / "run.yaml").write_text(config_to_yaml(tiny_run(folder, name="good")))
    write_series(folder / "short.csv", rows=50)
    frame = pd.read_csv(folder / "series.csv")
    frame.assign(v1=frame["v1"].where(frame.index != 100, np.nan)).to_csv(
        folder / "nan.csv", index=False
    )
    frame.iloc[[*range(200), *range(150, 600)]].to_csv(folder / "back.csv", index=False)
    frame.iloc[[*range(201), *range(200, 600)]].to_csv(folder / "twice.csv", index=False)
    for name in HEAVY:
        (folder / "poison" / name).mkdir(parents=True)
        text = f"raise AssertionError('{name} was imported before the refusal')"
        (folder / "poison" / name / "__init__.py").write_text(text)
    return folder


def command_line(options: tuple[str, ...], folder: Path) -> list[str]:
    return ["--config", str(folder / "run.yaml"), *(o.format(folder=folder) for o in options)]


def environment(**changes: str) -> dict[str, str]:
    launched = {*RANK_VARIABLES, "PYTHONPATH"}
    plain = {key: value for key, value in os.environ.items() if key not in launched}
    scripts = f"{Path(sys.executable).parent}{os.pathsep}{plain.get('PATH', '')}"
    return plain | {"PATH": scripts, "DS_ACCELERATOR": "cpu"} | changes


def start(command: list[str], **changes: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        command, cwd=ROOT, env=environment(**changes), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def finish(process: "subprocess.Popen[str]", timeout_s: float = LIMIT_S) -> tuple[int, str, str]:
    """Exit code, standard output and standard error; a command that hangs is killed."""
    with process:
        try:
            out, error = process.communicate(timeout=timeout_s)
        finally:
            process.kill()
    return process.returncode, out, error


def finish_all(processes: "list[subprocess.Popen[str]]") -> list[tuple[int, str, str]]:
    try:
        return [finish(process) for process in processes]
    finally:
        for process in processes:  # those after one that hangs
            with process:
                process.kill()


def assert_says(text: str, mistake: Mistake) -> None:
    for part in (mistake.key, mistake.value, mistake.remedy):
        assert part in text


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_refused_before_torch_is_imported(folder: Path, name: str):
    mistake = MISTAKES[name]
    changes = {"PYTHONPATH": str(folder / "poison"), "WORLD_SIZE": str(mistake.ranks)}
    arguments = command_line(mistake.options, folder)
    commands = [
        start(
            [sys.executable, *(part.format(ranks=mistake.ranks) for part in command), *arguments],
            **changes,
        )
        for command in COMMANDS.values()
    ]
    for code, out, error in finish_all(commands):
        assert code == 2, error
        assert error.startswith("error: ")
        assert len(error.splitlines()) == 1, "one line, no traceback"
        assert out == ""
        assert_says(error, mistake)
    assert not (folder / "runs").exists()


def test_an_existing_run_is_refused_and_left_as_it_is(folder: Path, tmp_path: Path):
    (tmp_path / "good").mkdir()
    (tmp_path / "good/metrics.jsonl").write_text("{}\n")
    arguments = command_line(("--runs_dir", str(tmp_path)), folder)
    process = start(
        [sys.executable, *COMMANDS["train"], *arguments], PYTHONPATH=str(folder / "poison")
    )
    code, out, error = finish(process)
    assert (code, out) == (2, "")
    assert error == (
        f"error: name=good: {tmp_path}/good already holds an unfinished run. Choose another "
        "--name, or go on with it: --resume auto; to run it again under this name, move the "
        "folder away first.\n"
    )
    assert [path.name for path in (tmp_path / "good").iterdir()] == ["metrics.jsonl"]


def test_a_run_that_is_not_refused_would_import_torch(folder: Path):
    """The poison works: without a mistake the command gets as far as torch."""
    arguments = command_line((), folder)
    process = start(
        [sys.executable, *COMMANDS["train"], *arguments], PYTHONPATH=str(folder / "poison")
    )
    code, _, error = finish(process)
    assert code == 1
    assert "torch was imported before the refusal" in error
    assert not (folder / "runs").exists()


LAUNCHERS = {
    "torchrun": ["torchrun", "--standalone", "--nproc_per_node", "2", "-m", "dist_train.train"],
    "deepspeed": [
        "deepspeed", "--log_level", "error", "--no_local_rank", "--num_gpus", "2",
        "--module", "dist_train.train",
    ],
}  # fmt: skip


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("launcher", "name"),
    [(launcher, name) for launcher, names in ON_TWO_RANKS.items() for name in names],
)
def test_a_launcher_ends_in_seconds_and_says_why(folder: Path, launcher: str, name: str):
    """It ends the other rank as soon as the first has refused: one message, or two."""
    mistake = MISTAKES_OF_RANKS[name]
    started = time.monotonic()
    process = start([*LAUNCHERS[launcher], *command_line(mistake.options, folder)])
    code, _, error = finish(process, timeout_s=2 * LIMIT_S)
    elapsed = time.monotonic() - started
    print(f"{launcher}, {name}: {elapsed:.1f} s")
    assert code != 0
    assert 1 <= error.count("error: ") <= 2, error
    assert_says(error, mistake)
    assert 'dist_train/train.py", line' not in error, "a rank shows a traceback"
    assert elapsed < LIMIT_S
    assert not (folder / "runs").exists()


@pytest.mark.ranks
@pytest.mark.parametrize("name", [name for names in ON_TWO_RANKS.values() for name in names])
def test_every_rank_refuses_for_itself(folder: Path, name: str):
    """Ranks that no launcher ends: with its variables, and without each other."""
    mistake = MISTAKES_OF_RANKS[name]
    ranks = [
        start(
            [sys.executable, *COMMANDS["train"], *command_line(mistake.options, folder)],
            RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2",
            MASTER_ADDR="127.0.0.1", MASTER_PORT="1",
        )
        for rank in range(2)
    ]  # fmt: skip
    for code, out, error in finish_all(ranks):
        assert (code, out) == (2, "")
        assert len(error.splitlines()) == 1, error
        assert_says(error, mistake)
    assert not (folder / "runs").exists()


def test_local_sh_refuses_before_it_starts_a_launcher(folder: Path, tmp_path: Path):
    launcher = tmp_path / "deepspeed"
    launcher.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    launcher.chmod(0o755)
    arguments = [str(folder / "run.yaml"), "--data.path", "nowhere.csv"]
    path = f"{tmp_path}{os.pathsep}{environment()['PATH']}"
    process = start(["launch/local.sh", *arguments], PATH=path, RANKS="2")
    code, out, error = finish(process)
    assert (code, out) == (2, "")
    assert error == "error: data.path=nowhere.csv does not exist: check the path.\n"
    assert not (tmp_path / "started").exists()
    assert not (folder / "runs").exists()


def test_local_sh_without_a_configuration_says_how_it_is_used():
    process = start(["launch/local.sh"])
    code, out, error = finish(process)
    assert code == 2
    assert "launch/local.sh CONFIG" in out + error


def fail_to_make_the_folder(rank: int, world_size: int, config: RunConfig) -> None:
    expected = ConfigError if rank == 0 else RuntimeError
    with pytest.raises(expected, match=r"/proc/") as caught:
        train_and_score(config, check(config))
    if rank > 0:
        assert "Opening the run folder failed on rank 0: ConfigError" in str(caught.value)


@pytest.mark.ranks
@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder nobody may write to")
def test_what_only_one_rank_finds_out_stops_all(tmp_path: Path):
    config = replace(tiny_run(tmp_path), runs_dir="/proc/runs")
    run_ranks(fail_to_make_the_folder, 2, config)


def test_the_launchers_of_these_tests_are_installed():
    for name in LAUNCHERS:
        assert shutil.which(name, path=environment()["PATH"])
