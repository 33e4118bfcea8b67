"""What the ranks tell each other about themselves, through the store in which the job met.

Every second a rank writes one small key and reads three: the alarm, what rank 0 wrote and what
the rank after it wrote. Rank 0 reads those of all ranks in one request. So the traffic grows with
the number of ranks, not with its square.
"""

import json
from dataclasses import asdict, dataclass
from typing import Literal, Protocol

State = Literal["running", "lost", "failed", "left"]
"""lost: met an error of a connection; failed: an error of its own; left: done, or told to stop."""

_NO_ALARM = "none"


class Store(Protocol):
    """What is needed of torch's store."""

    def set(self, key: str, value: str) -> None:
        """Write a key."""

    def multi_get(self, keys: list[str]) -> list[bytes]:
        """Read keys, once all of them exist."""

    def compare_set(self, key: str, expected: str, desired: str) -> bytes:
        """Write a key where it has the expected value."""


@dataclass(frozen=True, kw_only=True)
class Beat:
    """What a rank says about itself."""

    number: int
    """Counts up: a rank whose number stands still shows no sign of life."""

    phase: str
    place: str
    """Step and phase, for messages."""

    step: int
    """Optimizer step; 0 before the first."""

    idle_s: float
    """Seconds since its last mark that it was awake for."""

    patience: float
    marked_at: float
    """Time of day of that mark."""

    exchanges: tuple[int, int]
    """Collectives it has entered: of all ranks together, and of any group."""

    state: State
    said: str
    """First line of the error of a rank that has failed."""

    machine: str
    pid: int
    started: int

    def to_text(self) -> str:
        """Write it as a value of the store."""
        return json.dumps(asdict(self))

    @classmethod
    def from_text(cls, text: str | bytes) -> "Beat":
        """Read what :meth:`to_text` wrote."""
        values = json.loads(text)
        return cls(**values | {"exchanges": tuple(values["exchanges"])})


class Board:
    """The keys of one watch. Every method asks the store, and may wait for it or raise."""

    def __init__(self, store: Store, rank: int, world_size: int) -> None:
        """Take part.

        Args:
            store: A connection of its own: a wait of the main thread must not block it.
            rank: Number of this rank.
            world_size: Number of ranks.
        """
        self._store = store
        self._rank = rank
        self.next = (rank + 1) % world_size
        self._others = range(world_size) if rank == 0 else sorted({0, self.next})
        if rank == 0:
            store.set("alarm", _NO_ALARM)

    def publish(self, beat: Beat) -> None:
        """Write what this rank says."""
        self._store.set(f"rank/{self._rank}", beat.to_text())

    def read(self) -> tuple[str, dict[int, Beat]]:
        """Read the alarm, empty where there is none, and what others say, by rank."""
        keys = [f"rank/{rank}" for rank in self._others]
        alarm, *texts = self._store.multi_get(["alarm", *keys])
        beats = dict(zip(self._others, map(Beat.from_text, texts), strict=True))
        text = alarm.decode()
        return "" if text == _NO_ALARM else text, beats

    def raise_alarm(self, text: str) -> None:
        """Tell all ranks; the first alarm stays."""
        self._store.compare_set("alarm", _NO_ALARM, text)
