"""What a check is: each rank examines, rank 0 judges."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dist_train.config import RunConfig
from launch.doctor.finding import Finding
from launch.doctor.meeting import Arrival, Meeting
from launch.doctor.options import DoctorOptions
from launch.doctor.report import Report


@dataclass(frozen=True, kw_only=True)
class Visit:
    """What a check needs to know on one rank."""

    config: RunConfig
    options: DoctorOptions
    meeting: Meeting
    ranks: Sequence[Arrival] = ()
    """All ranks by number, once they are known to be complete: for checks made together."""

    leftovers: list[Path] = field(default_factory=list)
    """Files that are deleted when the doctor ends, however it does."""

    @property
    def rank(self) -> int:
        """Number of this rank."""
        return self.meeting.arrival.rank

    @property
    def world_size(self) -> int:
        """Ranks of the job as they were announced to this one."""
        return self.meeting.arrival.world_size


@dataclass(frozen=True, kw_only=True)
class Check:
    """One of the things that are looked at."""

    name: str
    examine: Callable[[Visit], dict[str, Any]]
    """Look, on one rank; returns plain JSON values, and may raise whatever it meets."""

    judge: Callable[[Sequence[Report], Visit], list[Finding]]
    """Say what the ranks have found, on rank 0; gets the reports of those that could look."""

    once_per_node: bool = False
    """Whether only the first rank of a node looks."""

    together: bool = False
    """Whether all ranks have to look at the same time: then none may be missing."""
