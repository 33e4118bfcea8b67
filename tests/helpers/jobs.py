"""Ranks that are real processes, as a launcher starts them: what a signal or an exit code needs."""

import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a rank ended."""

    code: int
    """Exit code; negative: the signal that ended it."""

    out: str
    error: str


def run_job(
    script: str, *arguments: str, world_size: int = 2, timeout_s: float = 90
) -> list[Ended]:
    """Run Python code on every rank, and wait for all of them.

    They meet through a port, as those of a real job do.

    Args:
        script: What each rank runs; ``sys.argv[1:]`` are the arguments.
        arguments: Passed on.
        world_size: Number of ranks.
        timeout_s: Seconds before the job is killed.

    Raises:
        subprocess.TimeoutExpired: A rank still ran then.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", script, *arguments],
            cwd=ROOT,
            env=_environment(rank, world_size, port),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for rank in range(world_size)
    ]
    try:
        told = [process.communicate(timeout=timeout_s) for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    return [
        Ended(code=process.returncode, out=out, error=error)
        for process, (out, error) in zip(ranks, told, strict=True)
    ]


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
