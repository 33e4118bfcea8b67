"""Start ranks of one machine for a benchmark: fresh processes that meet through a file."""

import json
import multiprocessing
import os
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

# Encoding a million windows takes minutes on the first rank alone.
TIMEOUT = timedelta(minutes=30)


def run_on_ranks(
    work: Callable[..., dict[str, Any]], world_size: int, *args: object
) -> list[dict[str, Any]]:
    """Call ``work(rank, world_size, *args)`` in fresh gloo processes of one thread each.

    Args:
        work: A module-level function that returns plain JSON values.
        world_size: Ranks.
        args: Passed on; picklable.

    Returns:
        What each rank returned, in rank order.

    Raises:
        RuntimeError: A rank failed; its traceback is on stderr.
    """
    # Idle threads of one contestant must not spin on the core that another one runs on.
    os.environ |= {"OMP_WAIT_POLICY": "passive", "KMP_BLOCKTIME": "0"}
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ranks = [
            context.Process(target=_enter, args=(rank, world_size, folder, work, args))
            for rank in range(world_size)
        ]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
        if any(process.exitcode != 0 for process in ranks):
            codes = [process.exitcode for process in ranks]
            raise RuntimeError(f"{work.__name__}: exit codes of the ranks are {codes}.")
        return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(world_size)]


def peak_memory_gib() -> float:
    """Largest resident memory of this process so far."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 2**20
    raise RuntimeError("/proc/self/status has no VmHWM: this benchmark needs Linux.")


def _enter(
    rank: int,
    world_size: int,
    folder: Path,
    work: Callable[..., dict[str, Any]],
    args: tuple[object, ...],
) -> None:
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(rank), DS_ACCELERATOR="cpu"
    )
    torch.set_num_threads(1)
    meeting = f"file://{folder / 'rendezvous'}"
    dist.init_process_group("gloo", meeting, rank=rank, world_size=world_size, timeout=TIMEOUT)
    dist.barrier()  # one that has nothing to do must not leave while others still connect to it
    try:
        result = work(rank, world_size, *args)
        (folder / f"{rank}.json").write_text(json.dumps(result))
    finally:
        dist.destroy_process_group()
