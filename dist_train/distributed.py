"""The process group: start, agreement on errors, reductions.

Works without a launcher too: a single process is a group of one rank.
"""

import os
import socket
import sys
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any, Literal, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d

from dist_train.beats import Store
from dist_train.worker import abandon_all
from memory_index.groups import RankGroup, agreed

MeetingStore: TypeAlias = Any  # torch exports no type of a store
MeetingGroup: TypeAlias = dist.ProcessGroup


def initialize_process_group(timeout_s: float, store: MeetingStore | None = None) -> None:
    """Join the ranks that the launcher started; collective.

    Sets the environment variables that DeepSpeed reads where no launcher did, and selects the GPU
    of this rank.

    Args:
        timeout_s: Seconds a collective may wait for the other ranks.
        store: Where they have met already, see :func:`open_store`; None: they meet now.
    """
    global _timeout
    _timeout = timedelta(seconds=timeout_s)
    if "RANK" not in os.environ:
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1")
        os.environ["MASTER_PORT"] = str(_free_port())
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank())
        # Torch's own watchdog would abort the survivors of a lost node, without a word of which it
        # was, before this project's has named it (train.watchdog_s).
        os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")
    if not dist.is_initialized():
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        if store is None:
            dist.init_process_group(backend, timeout=_timeout)
        else:
            own = distributed_c10d.PrefixStore("group", store)
            number, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
            dist.init_process_group(
                backend, timeout=_timeout, store=own, rank=number, world_size=count
            )


def open_store(address: str, port: int, *, is_host: bool, timeout_s: float) -> MeetingStore:
    """Open the store in which ranks can meet before there is a process group; not collective.

    Under torchrun the launcher hosts it, and no rank does. A program at the other end that is no
    store may keep this waiting for longer than ``timeout_s``.

    Args:
        address: Of the machine that hosts it.
        port: There; 0 chooses a free one, for a host that is alone.
        is_host: Whether this process hosts it; it then lasts as long as the process.
        timeout_s: Seconds that each wait for a key lasts, and the connecting.

    Raises:
        RuntimeError: Nobody answers there, or the port is taken; see :func:`is_connection_error`.
    """
    timeout = timedelta(seconds=timeout_s)
    made: Any = dist
    return made.TCPStore(address, port, None, is_host, timeout, wait_for_workers=False)


def is_store_hosted() -> bool:
    """Whether the launcher hosts the store at MASTER_PORT itself, as torchrun does."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def set_timeouts(timeout_s: float) -> None:
    """Give every process group its timeout, also those that a library made without one.

    DeepSpeed reduces on a group of its own: a lost peer would keep it waiting for 30 minutes.
    """
    timeout = timedelta(seconds=timeout_s)
    for group in list(distributed_c10d._world.pg_map):
        distributed_c10d._set_pg_timeout(timeout, group)


def connect_to_store(name: str, timeout_s: float) -> Store:
    """Open a further connection to the store in which the job met; not collective.

    A store has one connection, and whoever waits for a key holds it.

    Args:
        name: Put in front of all keys; equal on all ranks. A second connection of one name, in
            one process group, has keys of its own.
        timeout_s: Seconds to wait for a key.
    """
    _connections[name] = _connections.get(name, 0) + 1
    shared: Any = distributed_c10d._get_default_store()
    own = shared.clone()
    own.set_timeout(timedelta(seconds=timeout_s))
    store: Store = distributed_c10d.PrefixStore(f"{name}/{_connections[name]}", own)
    return store


def is_store_lost(error: RuntimeError) -> bool:
    """Whether the store is gone, rather than slow."""
    return not isinstance(error, dist.DistStoreError)


def is_connection_error(error: RuntimeError) -> bool:
    """Whether torch calls it one of the network or of the backend; gloo has no type for its own."""
    return isinstance(error, (dist.DistNetworkError, dist.DistBackendError))


def exchanges() -> tuple[int, int]:
    """Count the collectives that this rank has entered, waits included; not collective.

    Returns:
        Those of all ranks of the job, and those of any group.
    """
    size, of_all, of_any = world_size(), 0, 0
    groups: list[Any] = list(distributed_c10d._world.pg_map)
    for group in groups:
        count = group._get_sequence_number_for_group()
        of_any += count
        of_all += count if group.size() == size else 0
    return of_all, of_any


def shut_down() -> None:
    """End the threads and leave the process group, so that the exit of the process cannot abort.

    A rank that an error ends stays in a group of NCCL: leaving it waits for the others, who may
    never come, and the error would not be told.
    """
    abandon_all()
    _groups.clear()
    _connections.clear()
    if not dist.is_initialized():
        return
    failing = sys.exc_info()[0] is not None
    if not (failing and dist.get_backend() == "nccl" and world_size() > 1):
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


def device_name() -> str | None:
    """What torch calls the device of this rank; None: a CPU."""
    return torch.cuda.get_device_name(local_rank()) if torch.cuda.is_available() else None


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


def any_rank(flag: bool) -> bool:
    """Whether the flag is set on one rank at least; collective, over gloo, some 0.1 ms."""
    return rank_group("flags", "world").any(flag)


def agree_or_raise(what: str) -> AbstractContextManager[None]:
    """Raise on all ranks of the job what one raises in a block; see :func:`agreed`."""
    return agreed(what, gather_objects)


def node_names() -> list[str]:
    """Name of the node of every rank, in rank order; collective.

    A launcher's number of the node counts too: an emulated cluster has many nodes on one host.
    """
    return [str(name) for name in gather_objects(node_name())]


def node_name() -> str:
    """Name of the node of this rank; not collective."""
    numbers = [os.environ.get(key, "") for key in ("SLURM_NODEID", "GROUP_RANK")]
    return "/".join([socket.gethostname(), *numbers])


def split_ranks(parts: Sequence[Sequence[int]]) -> MeetingGroup | None:
    """Make groups of ranks on the backend of the job; collective over all ranks.

    Args:
        parts: Ranks of each group, the same on all ranks; a rank is in one of them at most.

    Returns:
        The group of this rank; None where it is in none, or alone.
    """
    groups = [dist.new_group(list(ranks), timeout=_timeout) for ranks in parts]
    own = [group for ranks, group in zip(parts, groups, strict=True) if rank() in ranks]
    return own[0] if own and own[0].size() > 1 else None


def all_reduce_in(group: MeetingGroup, tensor: Tensor) -> None:
    """Replace a tensor by its sum over a group, in place; collective over the group."""
    dist.all_reduce(tensor, group=group)


def all_gather_in(group: MeetingGroup, gathered: Tensor, tensor: Tensor) -> None:
    """Write the tensors of a group's ranks one after the other; collective over the group.

    Args:
        group: Made by :func:`split_ranks`.
        gathered: Written to. Shape (ranks * n,).
        tensor: Of this rank. Shape (n,).
    """
    # Torch 2.13 has a new name for it, and warns of the old one.
    gather = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)
    gather(gathered, tensor, group=group)


def rank_group(name: str, members: Literal["rank", "node", "world"]) -> RankGroup:
    """Ranks that share an index or build a bank, over gloo; collective at its first call.

    Args:
        name: What they share it for: traffic of one name does not wait for that of another.
        members: This rank alone, the ranks of its node, or all.
    """
    own = rank()
    if members == "rank" or world_size() == 1:
        return RankGroup(None, [own])
    key = (name, members)
    if key not in _groups:
        nodes = node_names() if members == "node" else [""] * world_size()
        for node in dict.fromkeys(nodes):  # every rank has to make every group
            ranks = [number for number, other in enumerate(nodes) if other == node]
            group = dist.new_group(ranks, backend="gloo", timeout=_timeout)
            if own in ranks:
                group_or_none = group if len(ranks) > 1 else None
                _groups[key] = RankGroup(group_or_none, ranks, ranks.index(own))
    return _groups[key]


_connections: dict[str, int] = {}
_groups: dict[tuple[str, str], RankGroup] = {}
_timeout = timedelta(seconds=600)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
