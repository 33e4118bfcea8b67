"""What one rank has seen, as it comes to rank 0, and how several of them are named together."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T", bound=Hashable)


@dataclass(frozen=True, kw_only=True)
class Report:
    """One check on one rank."""

    rank: int
    node: str
    facts: dict[str, Any]
    """What its ``examine`` returned; empty where that failed."""

    error: str = ""
    """Why the check could not be done; empty where it was."""

    @property
    def who(self) -> str:
        """The rank as messages name it."""
        return f"rank {self.rank} ({self.node})"


def name_all(reports: Sequence[Report]) -> str:
    """Name ranks by node: ``ranks 0, 1 (a); rank 2 (b)``."""
    nodes: dict[str, list[int]] = {}
    for report in reports:
        nodes.setdefault(report.node, []).append(report.rank)
    return "; ".join(
        f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, sorted(ranks)))} ({node})"
        for node, ranks in nodes.items()
    )


def group_by(reports: Sequence[Report], key: Callable[[Report], T]) -> dict[T, list[Report]]:
    """Put together the ranks that say the same, that of rank 0 first."""
    groups: dict[T, list[Report]] = {}
    for report in sorted(reports, key=lambda report: report.rank):
        groups.setdefault(key(report), []).append(report)
    return groups
