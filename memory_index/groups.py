"""Ranks that share an index: what they exchange, and how they agree that one of them has failed.

Everything goes through gloo on the CPU, in a group of its own: searches run beside the training
step, whose collectives they must neither wait for nor overtake.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
import torch.distributed as dist
from torch import Tensor


class OtherRankError(RuntimeError):
    """This rank is well, but another one of the job has failed; its message is quoted."""


@contextmanager
def agreed(what: str, gather: Callable[[object], list[object]]) -> Iterator[None]:
    """Run a block that may fail on some ranks, and raise on all ranks if it failed on one.

    Collective at the end of the block: no collective may be called inside it.

    Args:
        what: What the block does, for the message of the ranks on which it went well.
        gather: Collects one object of every rank, in rank order.

    Raises:
        OtherRankError: The block went well here but failed on another rank.
        Exception: Whatever the block raised here.
    """
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    messages = gather(None if failure is None else f"{type(failure).__name__}: {failure}")
    if failure is not None:
        raise failure
    failed = [(number, message) for number, message in enumerate(messages) if message is not None]
    if failed:
        number, message = failed[0]
        raise OtherRankError(f"{what} failed on rank {number}: {message}")


class RankGroup:
    """Some ranks of the job; every method but the properties is collective over them."""

    def __init__(
        self, group: dist.ProcessGroup | None = None, ranks: Sequence[int] = (0,), rank: int = 0
    ) -> None:
        """Wrap a gloo group.

        Args:
            group: The process group; None for one rank alone.
            ranks: Numbers of its members in the job, in the group's order.
            rank: Place of this rank among them.
        """
        assert group is not None or len(ranks) == 1
        self._group = group
        self.ranks = tuple(ranks)
        self.rank = rank

    @property
    def size(self) -> int:
        """Ranks in the group."""
        return len(self.ranks)

    def all_gather(self, tensor: Tensor) -> Tensor:
        """Collect a tensor of one shape from every rank. (...) -> (size, ...)."""
        if self._group is None:
            return tensor[None]
        tensor = tensor.contiguous()
        gathered = [torch.empty_like(tensor) for _ in self.ranks]
        dist.all_gather(gathered, tensor, group=self._group)
        return torch.stack(gathered)

    def exchange(self, tensor: Tensor) -> Tensor:
        """Send row r to rank r, and receive one row from each. (size, n) -> (size, n)."""
        if self._group is None:
            return tensor
        tensor = tensor.contiguous()  # also what is received, as empty_like keeps the strides
        received = torch.empty_like(tensor)
        dist.all_to_all_single(received, tensor, group=self._group)
        return received

    def gather_rows(self, rows: Tensor) -> Tensor | None:
        """Concatenate the rows of all ranks on the first one; None on the others.

        Args:
            rows: As many as this rank has. Shape (m, ...); the rest of the shape is the same.
        """
        if self._group is None:
            return rows
        counts = self.all_gather(torch.tensor([len(rows)]))[:, 0].tolist()
        padded = rows.new_zeros(max(counts), *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in self.ranks] if self.rank == 0 else None
        dist.gather(padded, parts, dst=self.ranks[0], group=self._group)
        if parts is None:
            return None
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on one rank at least."""
        if self._group is None:
            return flag
        flags = torch.tensor([flag], dtype=torch.uint8)
        dist.all_reduce(flags, op=dist.ReduceOp.MAX, group=self._group)
        return bool(flags)

    def gather_objects(self, value: object) -> list[object]:
        """Collect one small picklable object of every rank, in rank order."""
        if self._group is None:
            return [value]
        values: list[object] = [None] * self.size
        dist.all_gather_object(values, value, group=self._group)
        return values

    def barrier(self) -> None:
        """Wait for all ranks of the group."""
        self.any(False)

    def agree(self, what: str) -> AbstractContextManager[None]:
        """Raise on all ranks what one raises in a block, see :func:`agreed`."""
        return agreed(what, self.gather_objects)
