"""What the nodes of a job are busy with: memory, CPU and GPU, one reading of each at the log.

What is read is a file of /proc or two and a counter of torch, about 0.1 ms; where there is none,
its metrics are left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dist_train import distributed
from dist_train.process_memory import measure, peak_resident

_PROC = Path("/proc")
_GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One rank's own, and what it sees of its node."""

    node: str
    peak_rss: int
    """Largest resident memory of the rank so far, in bytes."""

    rss: int
    """Resident memory of the rank now that belongs to no file, in bytes."""

    cpu_percent: float | None
    """Busy time of the node's cores since the last reading."""

    memory_percent: float | None
    """Memory of the node in use."""

    gpu_peak: int
    """The most that torch has had on the rank's GPU, in bytes; 0 without one."""

    gpu: int
    """What torch has on the rank's GPU now, in bytes; 0 without one."""

    gpu_percent: float | None
    """Busy time of the rank's GPU over its driver's last sampling period."""


class NodeMeter:
    """Reads this rank's share, and puts all ranks' together."""

    def __init__(self) -> None:
        self._cpu = _cpu_ticks()
        self._asks_driver = torch.cuda.is_available()
        self.nodes: list[str] = []

    def gather(self) -> dict[str, float]:
        """Read on every rank and gather; collective.

        Returns:
            ``perf/rss_gib`` and ``perf/gpu_gib``, the largest of any rank; and for each node, by
            its number in order of rank, ``system/<number>/...``.
        """
        readings: list[Any] = distributed.gather_objects(self.read())
        self.nodes = list(dict.fromkeys(one.node for one in readings))
        return summarise(readings)

    def read(self) -> Reading:
        """Read this rank's. Not collective."""
        before, self._cpu = self._cpu, _cpu_ticks()
        use = measure()
        return Reading(
            node=distributed.node_name(),
            peak_rss=peak_resident(),
            rss=use.resident,
            cpu_percent=_busy_percent(before, self._cpu),
            memory_percent=_memory_percent(),
            gpu_peak=torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0,
            gpu=use.gpu,
            gpu_percent=self._gpu_percent(),
        )

    def _gpu_percent(self) -> float | None:
        if not self._asks_driver:
            return None
        try:
            return float(torch.cuda.utilization())
        # No pynvml, no driver that answers it, a part of a GPU: pynvml's errors have no common type
        # with torch's, and none of them may end a training.
        except Exception:
            self._asks_driver = False
            return None


def peak_rss_gib() -> float:
    """Largest resident memory so far of any rank, in GiB; collective."""
    return max(float(str(value)) for value in distributed.gather_objects(peak_resident())) / _GIB


def peak_device_gib() -> float | None:
    """Largest GPU memory that torch has held on any rank so far, in GiB; None on a CPU.

    Collective.
    """
    device = distributed.device()
    used = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    peak = max(float(str(value)) for value in distributed.gather_objects(used)) / _GIB
    return round(peak, 3) if peak else None


def summarise(readings: Sequence[Reading]) -> dict[str, float]:
    """Turn the readings of all ranks into metrics, see :meth:`NodeMeter.gather`."""
    metrics = {"perf/rss_gib": round(max(one.peak_rss for one in readings) / _GIB, 3)}
    if any(one.gpu_peak for one in readings):
        metrics["perf/gpu_gib"] = round(max(one.gpu_peak for one in readings) / _GIB, 3)
    for number, node in enumerate(dict.fromkeys(one.node for one in readings)):
        ranks = [one for one in readings if one.node == node]
        first, prefix = ranks[0], f"system/{number}"
        metrics[f"{prefix}/rss_gib"] = round(sum(one.rss for one in ranks) / _GIB, 3)
        busy = [one.gpu_percent for one in ranks if one.gpu_percent is not None]
        for name, value in (
            ("cpu_percent", first.cpu_percent),
            ("memory_percent", first.memory_percent),
            ("gpu_percent", sum(busy) / len(busy) if busy else None),
            ("gpu_gib", sum(one.gpu for one in ranks) / _GIB or None),
        ):
            if value is not None:
                metrics[f"{prefix}/{name}"] = round(value, 3)
    return metrics


def _cpu_ticks() -> tuple[int, int] | None:
    """Busy and all ticks of the node's cores since it started; None where nothing tells."""
    try:
        words = (_PROC / "stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]
        ticks = [int(word) for word in words]
    except (OSError, ValueError):
        return None
    if len(ticks) < 5:
        return None
    idle = ticks[3] + ticks[4]  # idle, and waiting for a disk
    return sum(ticks) - idle, sum(ticks)


def _busy_percent(before: tuple[int, int] | None, now: tuple[int, int] | None) -> float | None:
    if before is None or now is None or now[1] <= before[1]:
        return None
    return 100 * (now[0] - before[0]) / (now[1] - before[1])


def _memory_percent() -> float | None:
    try:
        lines = (_PROC / "meminfo").read_text(encoding="ascii").splitlines()
        sizes = {line.split(":")[0]: int(line.split()[1]) for line in lines[:3]}
        return 100 * (1 - sizes["MemAvailable"] / sizes["MemTotal"])
    except (OSError, ValueError, KeyError, IndexError):
        return None
