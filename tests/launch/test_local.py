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

from dist_train.config import ConfigError, RunConfig, config_to_yaml, load_run_config
from dist_train.launcher import RANK_VARIABLES
from launch import local
from launch.supervisor import Ended
from model.config import GramConfig
from tests.helpers.runs import tiny_run

pytestmark = [
    pytest.mark.ranks,
    pytest.mark.timeout(900),
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
    launched = {*RANK_VARIABLES, "TIMELLM_STARTED_AT"}
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
            out, error = process.communicate(timeout=280)
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


ENDLESS = ["--train.max_steps", "1000000", "--train.max_epochs", "1000000"]
ENDLESS += ["--train.patience", "1000000"]


def start_training(config: Path, folder: Path, *options: str) -> "subprocess.Popen[str]":
    """Start a run, and wait until it has saved a model and done a step."""
    process = start(config, *options)
    model, metrics = folder / "best/manifest.json", folder / "metrics.jsonl"
    deadline = time.monotonic() + 280
    while not (model.exists() and "train/loss" in metrics.read_text()):
        if process.poll() is not None or time.monotonic() > deadline:
            process.send_signal(signal.SIGTERM)
            pytest.fail(f"the training has not begun: {finish(process, config)}")
        time.sleep(0.1)
    return process


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
    process = start_training(config, folder, "--name", "x", *ENDLESS)
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
    assert "SIGKILL. If nobody did that, the host memory was used up" in killed.call.error
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
    assert again.seconds < trained.seconds
    assert content(config.parent / "runs") == before


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGUSR2", "SIGTERM"])
def test_a_signal_stops_the_run_with_code_75_and_leaves_no_process(name: str, config: Path):
    folder = config.parent / f"stopped-{name}"
    options = ["--runs_dir", str(folder), "--name", "s"]
    process = start_training(config, folder / "s", *options, *ENDLESS)
    ranks = ranks_of(config)
    process.send_signal(getattr(signal, name))
    stopped = finish(process, config)
    assert (stopped.code, ranks_of(config)) == (local.EXIT_STOPPED, []), stopped.error
    assert len(ranks) == RANKS
    assert f"stopped by {name}" in stopped.error
    assert stopped.seconds < 120


@pytest.mark.slow
def test_a_stopped_run_goes_on_under_its_own_name(config: Path):
    folder = config.parent / "resumed"
    options = ["--runs_dir", str(folder), "--name", "r", "--train.max_steps", "300"]
    process = start_training(config, folder / "r", *options)
    process.send_signal(signal.SIGUSR2)
    stopped = finish(process, config)
    assert stopped.code == local.EXIT_STOPPED, stopped.error
    step = json.loads((folder / "r/stopped.json").read_text())["step"]
    assert 0 < step < 300
    assert f"after step {step}" in stopped.error
    resumed = finish(start(config, *options, "--resume", "auto"), config)
    assert resumed.code == 0, resumed.error
    assert json.loads(resumed.last_line)["run"] == "r"
    assert [path.name for path in folder.iterdir()] == ["r"]
    assert not (folder / "r/stopped.json").exists()
    again = finish(start(config, *options, "--resume", "auto"), config)
    assert (again.code, again.last_line) == (0, resumed.last_line)


def run_in(folder: Path, name: str) -> tuple[RunConfig, list[str]]:
    """A run whose folder is taken, and its command line."""
    config = tiny_run(folder, name=name, gram=GramConfig(use_gram=False))
    (folder / "run.yaml").write_text(config_to_yaml(config))
    config.run_folder.mkdir(parents=True)
    (config.run_folder / "config.yaml").touch()
    assert load_run_config(folder / "run.yaml") == config
    return config, ["--config", str(folder / "run.yaml")]


@pytest.mark.parametrize(
    "resume",
    [
        ["--resume", "auto"],
        ["--resume=auto"],
        ["--resume_counter", "2", "--resume", "auto"],
        ["--resume", "FOLDER/step_4"],
    ],
)
def test_with_resume_a_taken_name_is_kept_and_the_options_are_passed_on(
    resume: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("WORLD_SIZE", "2")
    config, argv = run_in(tmp_path, "taken")
    argv += [word.replace("FOLDER", str(config.run_folder)) for word in resume]
    argv += ["--train.seed", "3"]
    assert local.plan_run(argv) == local.Plan(folder=config.run_folder, arguments=argv)


def test_without_resume_a_taken_name_gets_a_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    config, argv = run_in(tmp_path, "taken")
    plan = local.plan_run(argv)
    assert plan == local.Plan(
        folder=Path(config.runs_dir) / "taken-2", arguments=[*argv, "--name", "taken-2"]
    )


def test_with_resume_a_wrong_key_is_still_refused_once_for_all_ranks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    _, argv = run_in(tmp_path, "taken")
    assert local.main(["2", *argv, "--resume", "auto", "--train.batch_sise", "3"]) == 2
    assert "did you mean train.batch_size" in capsys.readouterr().err


MARK = '{"signal": "SIGTERM", "step": 12}'


@pytest.mark.parametrize(
    ("code", "received", "files", "before", "judged", "said"),
    [
        (0, None, {"result.json": "{}"}, None, 0, ""),
        (0, "SIGTERM", {"result.json": "{}", "stopped.json": MARK}, None, 0, ""),
        # Whatever the launcher says, the mark of the ranks counts...
        (75, "SIGTERM", {"stopped.json": MARK}, None, 75, "stopped by SIGTERM after step 12"),
        (0, "SIGTERM", {"stopped.json": MARK}, None, 75, "stopped by SIGTERM after step 12"),
        (1, None, {"stopped.json": MARK}, None, 75, "stopped by SIGTERM after step 12"),
        (241, None, {"stopped.json": MARK}, None, 75, "stopped by SIGTERM after step 12"),
        # ... unless it is one of an earlier start, or half of one.
        (1, None, {"stopped.json": MARK}, MARK, 1, "error: the run did not finish"),
        (1, None, {"stopped.json": MARK[:9]}, None, 1, "error: the run did not finish"),
        (241, "SIGTERM", {}, None, 75, "before the ranks could save"),
        (140, "SIGUSR2", {}, None, 75, "before the ranks could save"),
        (1, "SIGUSR2", {}, None, 1, "error: the run did not finish"),
        (0, None, {}, None, 1, "error: the run did not finish"),
        (71, None, {}, None, 71, "error: the run did not finish"),
        (247, None, {}, None, 247, "host memory was used up"),
        (137, "SIGTERM", {}, None, 137, "error: the run did not finish"),
    ],
)
def test_the_files_of_the_run_decide_what_became_of_it(
    code: int, received: str | None, files: dict[str, str], before: str | None, judged: int,
    said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    number = None if received is None else signal.Signals[received]
    assert local.judge(Ended(code=code, signal=number), tmp_path, before, None) == judged
    told = capsys.readouterr()
    assert said in told.err
    assert bool(told.err) == bool(said)
    assert told.out == ""


def test_a_result_of_before_the_start_does_not_make_it_a_success(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    result = tmp_path / "result.json"
    result.write_text("{}")
    before = local.finished_at(tmp_path)
    assert local.judge(Ended(code=0, signal=None), tmp_path, None, before) == 1
    assert "error: the run did not finish" in capsys.readouterr().err
    os.utime(result, ns=(0, (before or 0) + 1))  # the run has gone on and finished again
    assert local.judge(Ended(code=0, signal=None), tmp_path, None, before) == 0


NO_RANKS = ["two", "0", "-1", "1.5", "", " 2", "2x"]


@pytest.mark.parametrize("ranks", NO_RANKS)
def test_what_is_no_number_of_ranks_is_refused(ranks: str, capsys: pytest.CaptureFixture[str]):
    assert local.main([ranks, "--config", "nowhere.yaml"]) == 2
    message = f"RANKS={ranks}: give the number of ranks, a whole number of at least 1."
    assert capsys.readouterr().err == f"error: {message}\n"


def script(folder: Path, nvidia_smi: str | None = None, **changes: str) -> tuple[int, str, str]:
    """Call local.sh where ``python`` and ``nvidia-smi`` are stand-ins; the first tells its ranks.

    Returns:
        Exit code, output and error.
    """
    (folder / "python").write_text('#!/bin/sh\necho "ranks=$3 accelerator=$DS_ACCELERATOR"\n')
    if nvidia_smi is not None:
        (folder / "nvidia-smi").write_text(f"#!/bin/sh\n{nvidia_smi}\n")
    for tool in folder.iterdir():
        tool.chmod(0o755)
    environment = {"PATH": f"{folder}{os.pathsep}/usr/bin{os.pathsep}/bin"} | changes
    done = subprocess.run(
        [str(ROOT / "launch/local.sh"), "x.yaml"], env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("ranks", ["two", "0", "-1"])
def test_the_script_refuses_what_is_no_number_of_ranks(ranks: str, tmp_path: Path):
    error = f"error: RANKS={ranks}: give the number of ranks, a whole number of at least 1.\n"
    assert script(tmp_path, TWO_GPUS, RANKS=ranks) == (2, "", error)


TWO_GPUS = "echo 'GPU 0: A (UUID: GPU-1)'; echo 'GPU 1: A (UUID: GPU-2)'"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, "ranks=2 accelerator="),
        ({"CUDA_VISIBLE_DEVICES": "1"}, "ranks=1 accelerator="),
        ({"RANKS": "12"}, "ranks=12 accelerator="),
    ],
)
def test_the_script_starts_a_rank_for_each_gpu(
    changes: dict[str, str], told: str, tmp_path: Path
):  # fmt: skip
    assert script(tmp_path, TWO_GPUS, **changes) == (0, f"{told}\n", "")


@pytest.mark.parametrize("tool", ["echo 'no driver.'; exit 9", "echo 'no driver.' >&2"])
@pytest.mark.parametrize("changes", [{}, {"RANKS": "2"}, {"CUDA_VISIBLE_DEVICES": "0"}])
def test_the_script_says_what_a_failing_nvidia_smi_said(
    tool: str, changes: dict[str, str], tmp_path: Path
):
    code, out, error = script(tmp_path, tool, **changes)
    assert (code, out) == (2, "")
    assert error.startswith("error: nvidia-smi finds no GPU (it says: no driver.): mend the driver")
    assert len(error.splitlines()) == 1
    on_cpu = script(tmp_path, tool, **changes, DS_ACCELERATOR="cpu")
    assert on_cpu == (0, "ranks=2 accelerator=cpu\n", "")


def test_a_signal_while_the_run_is_checked_is_75_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(local, "plan_run", lambda argv: os.kill(os.getpid(), signal.SIGUSR2))
    before = signal.getsignal(signal.SIGUSR2)
    assert local.main(["2"]) == local.EXIT_STOPPED
    assert "SIGUSR2" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGUSR2) == before


@pytest.mark.parametrize(
    ("visible", "ranks", "expected"),
    [
        ("", 3, ["--num_gpus", "3"]),
        ("4,5", 2, ["--include", "localhost:4,5"]),
        ("7, 2,5", 2, ["--include", "localhost:7,2"]),
    ],
)
def test_the_ranks_go_to_the_gpus_that_are_visible(
    monkeypatch: pytest.MonkeyPatch, visible: str, ranks: int, expected: list[str]
):
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    command = local.deepspeed_command(ranks, ["--config", "x"])
    place = command.index("--no_local_rank") + 1
    assert command[place : place + 2] == expected
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    assert "--num_gpus" in local.deepspeed_command(ranks, [])


@pytest.mark.parametrize(
    ("visible", "message"),
    [
        ("GPU-8f2c,GPU-11aa", r"CUDA_VISIBLE_DEVICES=GPU-8f2c,GPU-11aa: .* give their numbers"),
        ("3", r"2 ranks and CUDA_VISIBLE_DEVICES=3: .* lower RANKS"),
    ],
)
def test_gpus_that_the_launcher_cannot_be_told_of_are_refused(
    monkeypatch: pytest.MonkeyPatch, visible: str, message: str
):
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(ConfigError, match=message):
        local.deepspeed_command(2, [])
