"""What the doctor says: one finding per row of its table."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

Status = Literal["ok", "warn", "fail", "skip"]
"""warn: a job runs, but not as it should; fail: it will not; skip: not looked at."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One row."""

    check: str
    status: Status
    found: str
    """What is so, with names of ranks and nodes, and units."""

    remedy: str = ""
    """What to do about it; never empty for warn and fail."""

    numbers: dict[str, float] = field(default_factory=dict)
    """The measurements of the row, units in their names."""

    def __post_init__(self) -> None:
        assert self.remedy or self.status in ("ok", "skip"), self.check


def refusal(check: str, message: str) -> Finding:
    """Make a failure of one of this code's own messages, which end in what to do."""
    # A sentence of its own, else what comes after the last colon or semicolon.
    marks = [". "] if ". " in message else [mark for mark in (": ", "; ") if mark in message]
    found, remedy = message, ""
    if marks:
        found, _, remedy = message.rpartition(max(marks, key=message.rfind))
    remedy = (remedy[:1].upper() + remedy[1:]) or "See the message."
    return Finding(check=check, status="fail", found=found, remedy=remedy)


def worst(findings: Sequence[Finding]) -> Status:
    """The status that counts for all of them together."""
    order: tuple[Status, ...] = ("fail", "warn", "ok")
    return next((status for status in order if any(f.status == status for f in findings)), "ok")
