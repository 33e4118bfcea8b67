"""Run a function on several ranks of one machine, without a launcher and without a port."""

import multiprocessing
import os
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

# One server process imports the slow modules once (assert_close pulls in sympy); each rank is a
# fork of it, ready in milliseconds.
os.environ.setdefault("DS_ACCELERATOR", "cpu")
fork_context = multiprocessing.get_context("forkserver")
fork_context.set_forkserver_preload(
    [
        "pytest",
        "torch.distributed",
        "sympy",
        "torch.fx.experimental.symbolic_shapes",
        "pandas",
        "deepspeed",
        "dist_train.session",
        "dist_train.scoring",
    ]
)


class RankFailedError(AssertionError):
    """A rank raised. Carries the traceback of the rank that failed first."""


def run_ranks(
    work: Callable[..., None], world_size: int, *args: object, timeout_s: float = 120.0
) -> None:
    """Call ``work(rank, world_size, *args)`` in ``world_size`` gloo processes.

    The ranks meet through a file, so parallel test runs cannot fight over a port.

    Args:
        work: A module-level function: the ranks find it by its name.
        world_size: Number of ranks.
        args: Passed on to ``work``; picklable.
        timeout_s: Seconds before the run counts as hung and is killed.

    Raises:
        RankFailedError: A rank raised; the cause, not a peer whose connection it broke.
        TimeoutError: The ranks did not finish in time.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ranks = [
            fork_context.Process(
                target=_enter, args=(rank, world_size, folder, work, args, timeout_s)
            )
            for rank in range(world_size)
        ]
        for process in ranks:
            process.start()
        deadline = time.monotonic() + timeout_s
        for process in ranks:
            process.join(max(0.0, deadline - time.monotonic()))
        hung = [rank for rank, process in enumerate(ranks) if process.is_alive()]
        for process in ranks:
            process.kill()

        failures = sorted(folder.glob("failure.*"), key=lambda path: path.stat().st_mtime_ns)
        if failures:
            raise RankFailedError(failures[0].read_text())
        if hung:
            raise TimeoutError(f"{work.__name__}: ranks {hung} still ran after {timeout_s} s")
        crashed = [rank for rank, process in enumerate(ranks) if process.exitcode != 0]
        if crashed:
            raise RankFailedError(f"{work.__name__}: ranks {crashed} died without a traceback")


def _enter(
    rank: int,
    world_size: int,
    folder: Path,
    work: Callable[..., None],
    args: tuple[object, ...],
    timeout_s: float,
) -> None:
    torch.set_num_threads(1)
    # What a launcher would set; DeepSpeed reads it.
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(rank), DS_ACCELERATOR="cpu"
    )
    meeting = f"file://{folder / 'rendezvous'}"
    timeout = timedelta(seconds=timeout_s)
    dist.init_process_group("gloo", meeting, rank=rank, world_size=world_size, timeout=timeout)
    dist.barrier()  # one that has nothing to do must not leave while others still connect to it
    try:
        work(rank, world_size, *args)
    except BaseException:
        (folder / f"failure.{rank}").write_text(f"rank {rank}:\n{traceback.format_exc()}")
        raise SystemExit(1) from None
    finally:
        dist.destroy_process_group()
