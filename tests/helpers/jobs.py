"""Ranks that are real processes, as a launcher starts them: what a signal or an exit code needs."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FIRST_PORT, LAST_PORT = 22_000, 32_000
"""Below those that Linux gives to outgoing connections, above those of the first jobs of Slurm."""

MARK = "TIMELLM_TEST_JOB"
"""In the environment of every process of a job, whoever started it."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a rank ended."""

    code: int
    """Exit code; negative: the signal that ended it."""

    out: str
    error: str


class Job:
    """The ranks of a job, started and not waited for."""

    def __init__(self, script: str, *arguments: str, world_size: int = 2) -> None:
        """Run Python code on every rank; they meet through a port, as those of a real job do.

        Args:
            script: What each rank runs; ``sys.argv[1:]`` are the arguments.
            arguments: Passed on.
            world_size: Number of ranks.
        """
        self.mark = uuid.uuid4().hex
        self.port = free_port()
        self.ranks = [
            subprocess.Popen(
                [sys.executable, "-c", script, *arguments],
                cwd=ROOT,
                env=_environment(rank, world_size, self.port) | {MARK: self.mark},
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            for rank in range(world_size)
        ]

    def wait(self, rank: int, timeout_s: float = 200) -> Ended:
        """Wait for one rank.

        Raises:
            subprocess.TimeoutExpired: It still ran then.
        """
        out, error = self.ranks[rank].communicate(timeout=timeout_s)
        return Ended(code=self.ranks[rank].returncode, out=out, error=error)

    def kill(self) -> None:
        """End what still runs, and let go of it."""
        for process in self.ranks:
            process.kill()
        for process in self.ranks:
            process.wait(60)
            for pipe in (process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()


def run_job(
    script: str, *arguments: str, world_size: int = 2, timeout_s: float = 200
) -> list[Ended]:
    """Run Python code on every rank, see :class:`Job`, and wait for all of them.

    Raises:
        subprocess.TimeoutExpired: A rank still ran after ``timeout_s``; all are killed.
    """
    job = Job(script, *arguments, world_size=world_size)
    try:
        return [job.wait(rank, timeout_s) for rank in range(world_size)]
    finally:
        job.kill()


def free_port() -> int:
    """A port that nobody has, and that nobody is given who asks for any port."""
    while True:
        port = _ports.randrange(FIRST_PORT, LAST_PORT)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


_ports = random.Random()  # of its own: tests set the seed of the other one


def is_port_free(port: int, timeout_s: float = 20) -> bool:
    """Whether nobody listens there; a process that ends still does for a moment."""
    deadline = time.monotonic() + timeout_s
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)


def processes_of(mark: str) -> list[int]:
    """Processes of a job that still run, by what their environment holds."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            is_of_job = mark.encode() in (folder / "environ").read_bytes()
        except OSError:
            continue
        if is_of_job and int(folder.name) != os.getpid():
            found.append(int(folder.name))
    return found


def wait_until_gone(mark: str, timeout_s: float) -> list[int]:
    """Wait for the end of a job's processes; returns those that remain."""
    deadline = time.monotonic() + timeout_s
    while (left := processes_of(mark)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


def end_processes_of(mark: str) -> None:
    """Kill what is left of a job."""
    for pid in processes_of(mark):
        with suppress(ProcessLookupError):  # it has just ended
            os.kill(pid, signal.SIGKILL)


def _environment(rank: int, world_size: int, port: int) -> dict[str, str]:
    return os.environ | {
        "RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
    }
