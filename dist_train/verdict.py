"""Who is at fault: judged from what the ranks say about themselves, and from their silence."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal

from dist_train.beats import Beat

GRACE_S = 5.0
"""Seconds of silence after which a rank counts as dead, where others have lost a connection.

A busy machine may delay a beat by some seconds.
"""

LATE_S = 2.5
"""Seconds of silence of a rank without progress after which it will show no stacks either."""

EXIT_LOST = 3
"""Exit code of a rank that stops because another one died or failed."""

EXIT_HUNG = 4
"""Exit code of every rank of a job in which one made no progress, the one at fault included."""

Kind = Literal["hung", "silent", "died", "failed", "orphaned"]


@dataclass(frozen=True, kw_only=True)
class Seen:
    """The newest that is known of a rank."""

    beat: Beat
    silent_s: float = 0.0
    """Seconds since it came, as far as the observer was awake."""

    failed_s: float = 0.0
    """Seconds since it said that it has failed."""

    @property
    def idle_s(self) -> float:
        """Seconds without progress, as far as can be told."""
        return self.beat.idle_s + self.silent_s


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Which rank ends the job, where it was, and why."""

    kind: Kind
    rank: int
    place: str
    seconds: float = 0.0
    said: str = ""
    """Its error, its machine or its launcher."""

    @property
    def code(self) -> int:
        """Exit code of the ranks."""
        return EXIT_HUNG if self.kind in ("hung", "silent") else EXIT_LOST

    @property
    def line(self) -> str:
        """One line: what happened and what to do."""
        rank, where, seconds = f"rank {self.rank}", self.place, f"{self.seconds:.0f} s"
        if self.kind == "hung":
            return (
                f"{rank} has made no progress for {seconds} ({where}): its stacks are on its "
                "standard error and show what it waits for; raise train.watchdog_s where that may "
                "take so long."
            )
        if self.kind == "silent":
            return (
                f"{rank} has shown no sign of life for {seconds} ({where}): its process was "
                f"stopped, or {self.said} or the network to it is gone; look there, then start "
                "again."
            )
        if self.kind == "died":
            return (
                f"{rank} died in {where} (no message of its own): a process that vanishes so was "
                f"often killed for memory, which dmesg on {self.said} tells; lower "
                "train.micro_batch_size or data.num_workers then, and start again."
            )
        if self.kind == "failed":
            return f"{rank} failed in {where}: {self.said}"
        return f"{self.said} is gone, and the ranks stop without it ({where}); start again."

    def to_text(self) -> str:
        """Write it as a value of the store."""
        return json.dumps(asdict(self))

    @classmethod
    def from_text(cls, text: str) -> "Verdict":
        """Read what :meth:`to_text` wrote."""
        return cls(**json.loads(text))


def died(rank: int, beat: Beat) -> Verdict:
    """Say that a rank is no more."""
    return Verdict(kind="died", rank=rank, place=beat.place, said=_host(beat))


def judge(seen: Mapping[int, Seen], watchdog_s: float) -> Verdict | None:
    """Find the rank that holds up the job; None while none does.

    Ranks wait for each other in collectives, so most of those without progress are not at fault.
    At fault is a rank that no other is behind: it has entered fewest collectives.

    Args:
        seen: What is known of the ranks, by number.
        watchdog_s: Seconds that a rank may be without progress, or without a sign of life.
    """
    here = {rank: s for rank, s in seen.items() if s.beat.state in ("running", "lost")}
    is_lost = any(s.beat.state == "lost" for s in here.values())
    for rank, s in seen.items():
        if s.beat.state == "failed" and here and (is_lost or s.failed_s >= GRACE_S):
            return Verdict(kind="failed", rank=rank, place=s.beat.place, said=s.beat.said)
    if not here:
        return None
    quiet = max(here, key=lambda rank: here[rank].silent_s)
    silence, beat = here[quiet].silent_s, here[quiet].beat
    if is_lost and silence >= GRACE_S and beat.state == "running":
        return died(quiet, beat)
    overdue = [r for r, s in here.items() if s.idle_s >= watchdog_s * s.beat.patience]
    # One that has failed was waited for, too: until that is told, nobody else is at fault.
    present = {rank: s for rank, s in seen.items() if s.beat.state != "left"}
    behind = [rank for rank in _last(present) if rank in overdue]
    if silence >= watchdog_s or (behind and silence >= GRACE_S):
        return _silent(quiet, here[quiet])
    if behind:
        culprit = min(behind, key=lambda rank: _how_far(here[rank].beat))
        s = here[culprit]
        if s.silent_s >= LATE_S:
            return _silent(culprit, s)
        return Verdict(kind="hung", rank=culprit, place=s.beat.place, seconds=s.idle_s)
    return None


def _silent(rank: int, seen: Seen) -> Verdict:
    beat = seen.beat
    return Verdict(
        kind="silent", rank=rank, place=beat.place, seconds=seen.silent_s, said=_host(beat)
    )


def _last(seen: Mapping[int, Seen]) -> list[int]:
    """Ranks that wait for no other."""
    fewest = min(s.beat.exchanges[0] for s in seen.values())
    return [rank for rank, s in seen.items() if s.beat.exchanges[0] == fewest]


def _how_far(beat: Beat) -> tuple[int, int, float]:
    # The collectives of smaller groups are no more than a hint: not every rank has as many.
    return beat.step, beat.exchanges[1], beat.marked_at


def _host(beat: Beat) -> str:
    return beat.machine.split()[0] if beat.machine else "its machine"
