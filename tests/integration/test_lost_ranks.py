"""A rank that dies or hangs ends the job on every rank, with a line that names it; real signals.

The ranks of most cases only reduce and sleep: what a training adds is tried once. They are started
together, and each test reads how its job went.
"""

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from dist_train.config import config_to_yaml
from dist_train.verdict import EXIT_HUNG, EXIT_LOST
from dist_train.watchdog import LINGER_S
from tests.helpers.jobs import (
    MARK,
    ROOT,
    Ended,
    Job,
    end_processes_of,
    free_port,
    is_port_free,
    wait_until_gone,
)
from tests.helpers.runs import tiny_run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.ranks,
    pytest.mark.timeout(900),
]  # sixteen ranks in one fixture

WATCHDOG_S = 5
AT_ONCE_S = LINGER_S + 27
"""From a death to the end of the last rank, on a slow machine that does other things too.

Without a watchdog it would take the 60 s after which an exchange between the ranks fails.
"""

STRIKE = """
import multiprocessing, os, signal, sys, time
from dist_train import progress
def sleep_alone():
    os.closerange(0, 3)  # or whoever reads them would wait for it too
    time.sleep(500)
def strike(kind):
    for _ in range(12):  # the others hear of the place, however busy the machine is
        progress.mark()
        time.sleep(0.5)
    print("struck", os.getpid(), time.time(), flush=True)
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "stop":
        progress.mark()
        os.kill(os.getpid(), signal.SIGSTOP)
    if kind == "sleep":  # with a process of its own, as those of a data loader
        multiprocessing.get_context("fork").Process(target=sleep_alone).start()
        time.sleep(500)
    if kind == "fail":
        raise AssertionError("ours")
    if kind == "work":  # alone, while the others wait
        for _ in range(16):
            progress.mark()
            time.sleep(0.5)
"""
REDUCES = f"""
from dist_train import processes
processes.begin()
{STRIKE}
import torch
from dist_train import distributed, watchdog
kind, struck = sys.argv[1].split("-") if len(sys.argv) > 1 and "-" in sys.argv[1] else ("", -1)
names = [f"{{p.name}}:{{p.pid}}" for p in processes.launchers()]
os.write(1, (" ".join(["launchers", *names]) + chr(10)).encode())  # at once: ranks share the file
distributed.initialize_process_group(60)
try:
    with watchdog.watch({WATCHDOG_S}):
        for step in range(1, 5 if kind else 1000):
            progress.enter("forward", step)
            if step == 3 and distributed.rank() == int(struck):
                progress.enter("backward")
                strike(kind)
            progress.enter("optimizer")
            distributed.reduce_sum(torch.ones(2))
            if step == 1:
                os.write(1, b"began\\n")
            time.sleep(0.1)
finally:
    distributed.shut_down()
print("done", flush=True)
"""
TRAINS = f"""
{STRIKE}
from dist_train import preflight
check = preflight.check
def and_strike(config):
    from dist_train.engine import Engine
    backward, steps = Engine.backward, []
    def step(engine, loss):
        steps.append(loss)
        if len(steps) == 13 and os.environ["RANK"] == "1":
            strike("kill")
        backward(engine, loss)
    Engine.backward = step
    return check(config)
preflight.check = and_strike
from dist_train.train import main
raise SystemExit(main(["--config", sys.argv[1]]))
"""
CASES = ("kill-0", "kill-1", "stop-0", "stop-1", "sleep-1", "fail-0", "fail-1", "work-0")


@dataclass(frozen=True, kw_only=True)
class Went:
    """How a job went."""

    struck: Ended
    other: Ended
    seconds: float
    """From the strike to the end of the other rank."""

    revived_s: float
    """From SIGCONT to the end of the one that was stopped."""

    left: list[int]
    port_is_free: bool


def follow(job: Job, kind: str, rank: int) -> Went:
    """Wait for both ranks; one that is stopped goes on once the other has ended."""
    try:
        other = job.wait(1 - rank)
        ended = began = time.time()
        if kind == "stop":
            job.ranks[rank].send_signal(signal.SIGCONT)
        struck = job.wait(rank)
        revived_s = time.time() - began
        (line,) = [line for line in struck.out.splitlines() if line.startswith("struck")]
        left = wait_until_gone(job.mark, 20)
        return Went(
            struck=struck, other=other, seconds=ended - float(line.split()[2]),
            revived_s=revived_s, left=left, port_is_free=is_port_free(job.port),
        )  # fmt: skip
    finally:
        job.kill()
        end_processes_of(job.mark)


@pytest.fixture(scope="module")
def jobs() -> Iterator[dict[str, Job]]:
    started = {case: Job(REDUCES, case) for case in CASES}
    yield started
    for job in started.values():
        job.kill()


@pytest.fixture(scope="module")
def went(jobs: dict[str, Job]) -> dict[str, Went]:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(len(jobs)) as pool:
        futures = {
            case: pool.submit(follow, job, case[:-2], int(case[-1])) for case, job in jobs.items()
        }
        return {case: future.result() for case, future in futures.items()}


def errors(ended: Ended) -> list[str]:
    return [line[line.index("error: ") :] for line in ended.error.splitlines() if "error: " in line]


def assert_one_line(ended: Ended, beginning: str) -> None:
    assert len(errors(ended)) == 1, ended.error
    assert errors(ended)[0].startswith(beginning)
    assert "Traceback" not in ended.error
    assert "frame #" not in ended.error, "the C++ frames of torch"


@pytest.mark.parametrize("case", CASES)
def test_nothing_is_left_behind(went: dict[str, Went], case: str):
    assert went[case].left == []
    assert went[case].port_is_free


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_killed_is_named_at_once(went: dict[str, Went], rank: int):
    job = went[f"kill-{rank}"]
    assert job.struck.code == -signal.SIGKILL
    assert job.other.code == EXIT_LOST
    assert_one_line(
        job.other, f"error: rank {rank} died in step 3, backward (no message of its own)"
    )
    assert "killed for memory" in job.other.error
    assert job.seconds < AT_ONCE_S


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_stopped_is_named_in_time_and_leaves_once_it_goes_on(
    went: dict[str, Went], rank: int
):
    job = went[f"stop-{rank}"]
    assert job.other.code == EXIT_HUNG
    assert_one_line(job.other, f"error: rank {rank} has shown no sign of life for ")
    assert "(step 3, backward)" in job.other.error
    assert WATCHDOG_S - 1 <= job.seconds < WATCHDOG_S + AT_ONCE_S
    assert job.struck.code in (EXIT_HUNG, EXIT_LOST)
    assert_one_line(job.struck, f"error: rank {rank} ")
    assert job.revived_s < AT_ONCE_S


def test_a_rank_that_sleeps_is_named_and_shows_its_stacks(went: dict[str, Went]):
    job = went["sleep-1"]
    for ended in (job.struck, job.other):
        assert ended.code == EXIT_HUNG
        assert len(errors(ended)) == 1
        assert errors(ended)[0].startswith("error: rank 1 has made no progress for ")
        assert "(step 3, backward)" in ended.error
    assert "in strike" in job.struck.error
    assert "in strike" not in job.other.error
    assert WATCHDOG_S - 1 <= job.seconds < WATCHDOG_S + AT_ONCE_S


@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_of_its_own_keeps_its_traceback_and_the_other_rank_quotes_it(
    went: dict[str, Went], rank: int
):
    job = went[f"fail-{rank}"]
    assert job.struck.code == 1
    assert "Traceback" in job.struck.error
    assert errors(job.struck) == []
    assert job.other.code == EXIT_LOST
    assert_one_line(
        job.other, f"error: rank {rank} failed in step 3, backward: AssertionError: ours"
    )
    assert job.seconds < AT_ONCE_S


def test_a_long_phase_that_gets_on_ends_nothing(went: dict[str, Went]):
    job = went["work-0"]
    for ended in (job.struck, job.other):
        assert (ended.code, errors(ended)) == (0, []), ended.error
        assert ended.out.splitlines()[-1] == "done"
    assert job.seconds > WATCHDOG_S + 2


def test_a_training_names_the_rank_that_was_killed(tmp_path: Path):
    path = tmp_path / "run.yaml"
    path.write_text(config_to_yaml(tiny_run(tmp_path)))
    job = follow(Job(TRAINS, str(path)), "kill", 1)
    assert job.other.code == EXIT_LOST
    assert_one_line(job.other, "error: rank 1 died in step 13, backward ")
    assert job.seconds < AT_ONCE_S
    assert job.left == []


LAUNCHERS = {
    "torchrun": ["torchrun", "--nproc_per_node", "2", "--master_port"],
    "deepspeed": [
        "deepspeed", "--log_level", "error", "--no_local_rank", "--num_gpus", "2",
        "--master_port",
    ],
}  # fmt: skip


@pytest.mark.parametrize(("launcher", "processes"), [("torchrun", 1), ("deepspeed", 2)])
def test_ranks_end_when_their_launcher_is_killed(tmp_path: Path, launcher: str, processes: int):
    script, mark, port = tmp_path / "script.py", uuid.uuid4().hex, free_port()
    script.write_text(REDUCES)
    scripts = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {
        MARK: mark, "PATH": scripts, "PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    out = tmp_path / "out.txt"
    with out.open("w") as file:
        command = [*LAUNCHERS[launcher], str(port), str(script)]
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=file)
    try:
        deadline = time.monotonic() + 180
        while out.read_text().count("began") < 2:
            assert time.monotonic() < deadline, out.read_text()
            assert process.poll() is None, out.read_text()
            time.sleep(0.2)
        time.sleep(1)  # in the midst of it
        (line, _) = [line for line in out.read_text().splitlines() if line[:9] == "launchers"]
        pids = [int(word.split(":")[1]) for word in line.split()[1:]]
        assert len(pids) == processes
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        process.wait(60)
        assert wait_until_gone(mark, 40) == []  # their steps would take 100 s
        assert "warning: the launcher (" in out.read_text()
        assert "frame #" not in out.read_text()
        assert is_port_free(port)
    finally:
        end_processes_of(mark)
        process.wait(60)
