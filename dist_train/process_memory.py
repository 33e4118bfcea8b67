"""Memory of this process: how much it has, and how much it may have."""

import contextlib
import os
import resource
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class MemoryUse:
    """Memory of this process, in bytes."""

    resident: int = 0
    """Pages in memory that belong to no file (RssAnon)."""

    virtual: int = 0
    """Address space, which RLIMIT_AS limits."""

    gpu: int = 0
    """What torch has allocated on this rank's GPU."""

    def since(self, before: "MemoryUse") -> "MemoryUse":
        """Growth since an earlier measurement; negative where memory was freed."""
        return MemoryUse(
            resident=self.resident - before.resident,
            virtual=self.virtual - before.virtual,
            gpu=self.gpu - before.gpu,
        )

    def largest(self, other: "MemoryUse") -> "MemoryUse":
        """The larger of two, number by number."""
        return MemoryUse(
            resident=max(self.resident, other.resident),
            virtual=max(self.virtual, other.virtual),
            gpu=max(self.gpu, other.gpu),
        )


def measure() -> MemoryUse:
    """Measure this process."""
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()
    except OSError:  # not Linux, or no memory to read it with
        pages = ["0", "0", "0"]
    virtual, resident, of_files = (int(count) * _PAGE for count in pages[:3])
    torch = sys.modules.get("torch")
    on_gpu = torch is not None and hasattr(torch, "cuda") and torch.cuda.is_initialized()
    return MemoryUse(
        resident=resident - of_files,
        virtual=virtual,
        gpu=torch.cuda.memory_allocated() if torch is not None and on_gpu else 0,
    )


def peak_resident() -> int:
    """The most resident memory that this process has had, in bytes, pages of files included."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def host_limit() -> tuple[int, Literal["address space", "cgroup", "machine"]]:
    """The most host memory that this process may use, in bytes, and what limits it."""
    address_space = resource.getrlimit(resource.RLIMIT_AS)[0]
    if address_space != resource.RLIM_INFINITY:
        return address_space, "address space"
    machine = os.sysconf("SC_PHYS_PAGES") * _PAGE
    cgroup = cgroup_limit()
    if cgroup is not None and cgroup < machine:
        return cgroup, "cgroup"
    return machine, "machine"


def address_space_left() -> int | None:
    """Bytes that may still be mapped; None: no limit is set (ulimit -v)."""
    limit, kind = host_limit()
    return limit - measure().virtual if kind == "address space" else None


def cgroup_limit(
    proc: Path = Path("/proc/self/cgroup"), mount: Path = Path("/sys/fs/cgroup")
) -> int | None:
    """The smallest memory limit of this process's control groups, in bytes; None: no limit.

    Args:
        proc: Says which groups the process is in.
        mount: Where the groups are, of version 2 or 1.
    """
    limits: list[int] = []
    try:
        lines = proc.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        root, name = (
            (mount / "memory", "memory.limit_in_bytes") if controllers else (mount, "memory.max")
        )
        folder = root / group.lstrip("/")
        for one in (folder, *folder.parents):  # each limits those below it
            if one == root.parent:
                break
            with contextlib.suppress(OSError, ValueError):  # "max" is no number
                limits.append(int((one / name).read_text(encoding="ascii")))
    return min((limit for limit in limits if limit < _NO_LIMIT), default=None)


_PAGE = os.sysconf("SC_PAGE_SIZE")
_NO_LIMIT = 2**62  # version 1 writes the largest multiple of a page
