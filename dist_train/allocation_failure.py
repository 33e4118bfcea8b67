"""Errors that mean that memory was used up, and what their texts say.

Free of torch: an error of a library that was never imported cannot be one.
"""

import errno
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from dist_train.process_memory import address_space_left

UNITS = {"bytes": 1, "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}

_NUMBER = r"([\d.]+) (TiB|GiB|MiB|KiB|bytes|B)\b"
_ON_GPU = re.compile(
    r"CUDA out of memory|CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED|"
    r"Cuda failure.*out of memory|cudaMalloc error out of memory|cudaErrorMemoryAllocation"
)
_ON_HOST = re.compile(
    r"can't allocate memory|Cannot allocate memory|std::bad_alloc|Unable to allocate \d"
)
# What these say may have other causes too: they count where next to nothing is left.
_SUSPECTS = re.compile(r"could not (create|execute) a (primitive|memory)|can't start new thread")
_NEXT_TO_NOTHING = 64 * 2**20
_REQUESTED = re.compile(
    rf"(?:[Tt]ried to allocate|Unable to allocate|[Ff]ailed to cudaMalloc) {_NUMBER}"
)


@dataclass(frozen=True, kw_only=True)
class AllocationFailure:
    """Memory that was asked for and could not be had."""

    error: BaseException
    """The error that says so: the one caught, or its cause."""

    where: Literal["gpu", "host"]
    requested: int | None = None
    """Bytes asked for; None where the text does not say."""

    gpu: int | None = None
    """Number of the GPU; None where the text does not say."""

    capacity: int | None = None
    """Bytes of that GPU."""

    others: int = 0
    """Bytes of that GPU which other processes hold."""

    unused: int = 0
    """Bytes that torch has reserved on that GPU in pieces too small."""


def find_failure(error: BaseException) -> AllocationFailure | None:
    """Find a failed allocation in an error or its causes; None where it is something else.

    To be asked where the error is caught first: some texts are only understood while memory is
    still used up.
    """
    for one in chain(error):
        where = _where(one)
        if where is not None:
            return _read(one, where)
    return None


def chain(error: BaseException) -> Iterator[BaseException]:
    """An error, and those that it was raised from or while handling, newest first."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        hidden = None if current.__suppress_context__ else current.__context__
        current = current.__cause__ or hidden


def _where(error: BaseException) -> Literal["gpu", "host"] | None:
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return "gpu"
    if isinstance(error, MemoryError):  # NumPy's is one, and FAISS's std::bad_alloc
        return "host"
    if isinstance(error, OSError):
        return "host" if error.errno == errno.ENOMEM else None
    if isinstance(error, RuntimeError) and not _quotes_another_rank(error):
        text = str(error)
        if _ON_GPU.search(text):
            return "gpu"
        if _ON_HOST.search(text) or (_SUSPECTS.search(text) and _is_used_up()):
            return "host"
    return None


def _is_used_up() -> bool:
    left = address_space_left()
    return left is not None and left < _NEXT_TO_NOTHING


def _quotes_another_rank(error: RuntimeError) -> bool:
    """Whether the memory of another rank was used up: that one gives the advice."""
    return type(error).__name__ == "OtherRankError"


def _read(error: BaseException, where: Literal["gpu", "host"]) -> AllocationFailure:
    text = str(error)
    requested = _REQUESTED.search(text)
    on_gpu = re.search(rf"GPU (\d+) has a total capacity of {_NUMBER}", text)
    unused = re.search(rf"{_NUMBER} is reserved by PyTorch but unallocated", text)
    return AllocationFailure(
        error=error,
        where=where,
        requested=_bytes(*requested.groups()) if requested else None,
        gpu=int(on_gpu[1]) if on_gpu else None,
        capacity=_bytes(on_gpu[2], on_gpu[3]) if on_gpu else None,
        others=sum(
            _bytes(*numbers)
            for numbers in re.findall(rf"Process \d+ has {_NUMBER} memory in use", text)
        ),
        unused=_bytes(*unused.groups()) if unused else 0,
    )


def _bytes(number: str, unit: str) -> int:
    return int(float(number) * UNITS[unit])
