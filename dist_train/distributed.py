"""The process group: start, agreement on errors, reductions.

Works without a launcher too: a single process is a group of one rank.
"""

import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d


def initialize_process_group(timeout_s: float) -> None:
    """Join the ranks that the launcher started; collective.

    Sets the environment variables that DeepSpeed reads where no launcher did, and selects the GPU
    of this rank.

    Args:
        timeout_s: Seconds a collective may wait for the other ranks.
    """
    if "RANK" not in os.environ:
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1")
        os.environ["MASTER_PORT"] = str(_free_port())
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank())
    if not dist.is_initialized():
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))


def set_timeouts(timeout_s: float) -> None:
    """Give every process group its timeout, also those that a library made without one.

    DeepSpeed reduces on a group of its own: a lost peer would keep it waiting for 30 minutes.
    """
    timeout = timedelta(seconds=timeout_s)
    for group in list(distributed_c10d._world.pg_map):
        distributed_c10d._set_pg_timeout(timeout, group)


def shut_down() -> None:
    """Leave the process group, so that the exit of the process cannot abort."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """Number of this rank in the job."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of ranks in the job."""
    return dist.get_world_size() if dist.is_initialized() else 1


def local_rank() -> int:
    """Number of this rank on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_main_rank() -> bool:
    """Whether this rank writes files and prints."""
    return rank() == 0


def device() -> torch.device:
    """Where this rank computes."""
    return torch.device("cuda", local_rank()) if torch.cuda.is_available() else torch.device("cpu")


def barrier() -> None:
    """Wait for all ranks; collective."""
    if world_size() > 1:
        dist.barrier()


def reduce_sum(tensor: Tensor) -> Tensor:
    """Sum a tensor over all ranks, equal on each; collective. The argument is not changed."""
    if world_size() == 1:
        return tensor.clone()
    total = tensor.detach().to(device(), copy=True)
    dist.all_reduce(total)
    return total.to(tensor.device)


def sum_in_place(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor by its sum over all ranks; collective."""
    for tensor in tensors:
        tensor.copy_(reduce_sum(tensor))


def broadcast(tensor: Tensor) -> Tensor:
    """Copy rank 0's tensor to all ranks; collective. Shape and dtype are the same on each."""
    if world_size() == 1:
        return tensor.clone()
    copy = tensor.detach().to(device(), copy=True).contiguous()
    dist.broadcast(copy, src=0)
    return copy.to(tensor.device)


def gather_objects(value: object) -> list[object]:
    """Collect one small picklable object of every rank, in rank order; collective."""
    if world_size() == 1:
        return [value]
    values: list[object] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


class OtherRankError(RuntimeError):
    """This rank is well, but another one of the job has failed; its message is quoted."""


@contextmanager
def agree_or_raise(what: str) -> Iterator[None]:
    """Run a block that may fail on some ranks, and raise on all ranks if it failed on one.

    Collective at the end of the block: no collective may be called inside it.

    Args:
        what: What the block does, for the message of the ranks on which it went well.

    Raises:
        OtherRankError: The block went well here but failed on another rank.
        Exception: Whatever the block raised here.
    """
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    messages = gather_objects(None if failure is None else f"{type(failure).__name__}: {failure}")
    if failure is not None:
        raise failure
    failed = [(number, message) for number, message in enumerate(messages) if message is not None]
    if failed:
        number, message = failed[0]
        raise OtherRankError(f"{what} failed on rank {number}: {message}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
