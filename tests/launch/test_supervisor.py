"""launch/supervisor.py: ranks that save when they are asked to, under the real launcher."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.ranks,
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds ranks in /proc"),
]

ROOT = Path(__file__).parents[2]
SUPERVISE = """
import json, sys
from launch.supervisor import supervise
ended = supervise(sys.argv[2:], grace_s=float(sys.argv[1]))
print(json.dumps([ended.code, ended.signal and ended.signal.name]), flush=True)
"""
# What a rank does until a signal comes, and then: rank 1 takes longer to save.
RANK = """
import os, signal, sys, time
folder, code, deaf = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "deaf"
rank = os.environ.get("RANK", "0")
got = []
def hear(number, frame):
    got.append(number)
    open(f"{folder}/heard.{rank}", "w").close()
for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2", "SIGHUP"):
    signal.signal(getattr(signal, name), hear)
worker = os.fork() or time.sleep(600)
with open(f"{folder}/ready.{rank}", "w") as file:
    file.write(f"{os.getpid()} {os.getppid()} {worker}")
while deaf or not got:
    if os.path.exists(f"{folder}/end"):
        sys.exit(code)
    time.sleep(0.05)
until = time.monotonic() + 0.5 + 3 * int(rank)
while time.monotonic() < until:
    time.sleep(0.05)
with open(f"{folder}/saved.{rank}", "w") as file:
    file.write(" ".join(signal.Signals(number).name for number in got))
sys.exit(code)
"""
# As much of a launcher as the tests without ranks of DeepSpeed need.
LAUNCHER = """
import os, subprocess, sys
ranks = [
    subprocess.Popen(sys.argv[1:], env=os.environ | {"RANK": rank, "LOCAL_RANK": rank})
    for rank in "01"
]
sys.exit(max(rank.wait() for rank in ranks))
"""


@dataclass
class Job:
    """A supervised launcher, and where its ranks write."""

    folder: Path
    process: "subprocess.Popen[str]"
    ranks: int
    pids: list[int] = field(default_factory=list)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 150
        while not condition():
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def wait_until_ready(self) -> None:
        files = [self.folder / f"ready.{rank}" for rank in range(self.ranks)]
        self.wait_until(lambda: all(file.exists() and file.read_text() for file in files))
        self.pids = [int(pid) for file in files for pid in file.read_text().split()]

    @property
    def launcher(self) -> int:
        return int((self.folder / "ready.0").read_text().split()[1])

    def finish(self) -> list[object]:
        """Code and signal; all processes of the job must have ended."""
        out, error = self.process.communicate(timeout=120)
        assert self.process.returncode == 0, error
        assert not self.alive()
        result: list[object] = json.loads(out.splitlines()[-1])
        return result

    def alive(self) -> list[int]:
        return [pid for pid in self.pids if Path(f"/proc/{pid}").exists()]

    def saved(self) -> list[str]:
        files = [self.folder / f"saved.{rank}" for rank in range(self.ranks)]
        return [file.read_text() if file.exists() else "nothing" for file in files]


class Jobs:
    """Starts jobs in a folder, and ends what a failed test leaves."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: list[Job] = []

    def start(self, *command: str, ranks: int = 2, grace_s: float = 30) -> Job:
        environment = {key: value for key, value in os.environ.items() if "RANK" not in key}
        environment |= {"DS_ACCELERATOR": "cpu", "PYTHONPATH": f"{ROOT}{os.pathsep}{self.folder}"}
        process = subprocess.Popen(
            [sys.executable, "-c", SUPERVISE, str(grace_s), *command],
            cwd=self.folder, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, process_group=0,
        )  # fmt: skip
        self.started.append(Job(self.folder, process, ranks))
        return self.started[-1]

    def under_deepspeed(self, code: int = 75) -> Job:
        (self.folder / "rank_of_a_test.py").write_text(RANK)
        return self.start(
            sys.executable, "-m", "deepspeed.launcher.runner", "--log_level", "error",
            "--no_local_rank", "--num_gpus", "2", "--master_port", "29500",
            "--module", "rank_of_a_test", str(self.folder), str(code), "hears",
        )  # fmt: skip

    def under_stand_in(self, mode: str = "hears", grace_s: float = 30) -> Job:
        rank = [sys.executable, "-c", RANK, str(self.folder), "75", mode]
        return self.start(sys.executable, "-c", LAUNCHER, *rank, grace_s=grace_s)


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[Jobs]:
    jobs = Jobs(tmp_path)
    # Heard also where the tests themselves run under nohup, or in the background of a script.
    before = {
        number: signal.signal(number, lambda *_: None) for number in (signal.SIGHUP, signal.SIGINT)
    }
    yield jobs
    for number, handler in before.items():
        signal.signal(number, handler)
    for job in jobs.started:
        job.process.kill()
        for pid in job.alive():  # before communicate, which waits for all who hold the pipe
            os.kill(pid, signal.SIGKILL)
        job.process.communicate()


@pytest.mark.parametrize(
    "name",
    [
        "SIGTERM",
        "SIGUSR2",
        pytest.param("SIGINT", marks=pytest.mark.slow),
        pytest.param("SIGUSR1", marks=pytest.mark.slow),
    ],
)
def test_every_rank_saves_in_its_own_time_under_the_deepspeed_launcher(name: str, jobs: Jobs):
    job = jobs.under_deepspeed()
    job.wait_until_ready()
    job.process.send_signal(getattr(signal, name))
    assert job.finish() == [75, name]
    # Once: the launcher would have sent rank 1 a SIGTERM when rank 0 had ended, and 30 seconds
    # later a SIGKILL.
    assert job.saved() == [name, name]


def test_a_signal_to_all_processes_at_once_kills_no_rank(jobs: Jobs):
    # As Slurm sends it to every process of a step: the launcher dies of it, with its own signal.
    job = jobs.under_deepspeed()
    job.wait_until_ready()
    for pid in (job.process.pid, job.launcher, *map(int, job.pids[::3])):
        os.kill(pid, signal.SIGUSR2)
    code, name = job.finish()
    assert name == "SIGUSR2"
    assert code != 75  # of the launcher, which knows nothing
    # A launcher that is gone makes the supervisor ask once more, in its own words.
    for saved in job.saved():
        assert "SIGUSR2" in saved.split()
        assert set(saved.split()) <= {"SIGUSR2", "SIGTERM"}


def test_an_error_of_a_rank_is_the_exit_code(jobs: Jobs):
    job = jobs.under_deepspeed(code=3)
    job.wait_until_ready()
    (job.folder / "end").touch()
    assert job.finish() == [3, None]


def test_a_closed_terminal_reaches_the_ranks_as_sigterm(jobs: Jobs):
    job = jobs.under_stand_in()
    job.wait_until_ready()
    job.process.send_signal(signal.SIGHUP)
    assert job.finish() == [75, "SIGHUP"]
    assert job.saved() == ["SIGTERM", "SIGTERM"]


def test_an_interrupt_of_a_terminal_does_not_reach_launcher_and_ranks_directly(jobs: Jobs):
    job = jobs.under_stand_in()
    job.wait_until_ready()
    os.killpg(job.process.pid, signal.SIGINT)  # as Ctrl-C goes to the whole group
    assert job.finish() == [75, "SIGINT"]
    assert job.saved() == ["SIGINT", "SIGINT"]


def test_ranks_that_a_killed_launcher_leaves_behind_save_too(jobs: Jobs):
    job = jobs.under_stand_in()
    job.wait_until_ready()
    os.kill(job.launcher, signal.SIGKILL)
    assert job.finish() == [128 + signal.SIGKILL, None]
    assert job.saved() == ["SIGTERM", "SIGTERM"]


def test_a_rank_that_does_not_end_is_killed_when_its_time_is_up(jobs: Jobs):
    job = jobs.under_stand_in("deaf", grace_s=2)
    job.wait_until_ready()
    began = time.monotonic()
    job.process.send_signal(signal.SIGUSR1)
    _, name = job.finish()
    assert name == "SIGUSR1"
    assert 2 < time.monotonic() - began < 60
    assert job.saved() == ["nothing", "nothing"]


def test_a_second_interrupt_kills_at_once(jobs: Jobs):
    job = jobs.under_stand_in("deaf", grace_s=300)
    job.wait_until_ready()
    began = time.monotonic()
    job.process.send_signal(signal.SIGINT)
    job.wait_until(lambda: all((job.folder / f"heard.{rank}").exists() for rank in range(2)))
    job.process.send_signal(signal.SIGINT)
    assert job.finish()[1] == "SIGINT"
    assert time.monotonic() - began < 60


def test_a_single_process_without_a_launcher_is_its_own_rank(jobs: Jobs):
    job = jobs.start(
        sys.executable, "-c", RANK, str(jobs.folder), "75", "hears", ranks=1
    )  # fmt: skip
    job.wait_until_ready()
    job.process.send_signal(signal.SIGUSR1)
    assert job.finish() == [75, "SIGUSR1"]
    assert job.saved() == ["SIGUSR1"]


def test_a_signal_before_there_are_ranks_ends_the_launcher(jobs: Jobs):
    job = jobs.start("sleep", "600", ranks=0)
    children = Path(f"/proc/{job.process.pid}/task/{job.process.pid}/children")
    job.wait_until(lambda: bool(children.read_text()))  # it listens before it starts one
    job.process.send_signal(signal.SIGTERM)
    assert job.finish() == [128 + signal.SIGTERM, "SIGTERM"]


def test_what_is_ignored_stays_ignored(jobs: Jobs):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup
    try:
        job = jobs.under_stand_in()
    finally:
        signal.signal(signal.SIGHUP, before)
    job.wait_until_ready()
    job.process.send_signal(signal.SIGHUP)
    time.sleep(1)
    (job.folder / "end").touch()
    assert job.finish() == [75, None]
    assert job.saved() == ["nothing", "nothing"]
