"""How ranks meet, and what they tell each other, through one store and with every wait bounded.

A rank takes a seat: its number in the order of arrival, which is its own even where two ranks have
the same number. The rank 0 that comes first leads. Whoever waits looks for progress of the other:
a wait ends ``timeout_s`` after the last sign of life, not after the whole doctor.
"""

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dist_train import distributed
from launch.doctor.address import Place, UnreachableError, wait_for_listener
from launch.doctor.bounded import bounded

_TICK_S = 0.1
_SLACK_S = 2.0  # what is over a check's own limit before its rank counts as lost
_FAREWELL_S = 5.0


class LostLeaderError(RuntimeError):
    """Rank 0 is gone or hangs; the message says which."""


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """A rank that came, as it describes itself."""

    seat: int
    rank: int
    world_size: int
    local_rank: int
    node: str
    pid: int
    task: int | None = None

    @property
    def number_on_node(self) -> int:
        """Of its node's ranks each has another."""
        return self.local_rank if self.task is None else self.task


class Meeting:
    """One rank's side of it. No method is collective; a barrier is said to be one."""

    def __init__(
        self,
        place: Place,
        node: str,
        timeout_s: float,
        on_progress: Callable[[str], None] = lambda what: None,
    ) -> None:
        """Come to the meeting: rank 0 opens it, unless the launcher has; the others connect.

        Args:
            place: Of this rank.
            node: Its node, as messages name it.
            timeout_s: Seconds of each wait.
            on_progress: Called with what this rank begins, whenever it gets on.

        Raises:
            UnreachableError: Rank 0 cannot be reached, or something else answers in its place.
        """
        self._timeout_s = timeout_s
        self._place = place
        self._on_progress = on_progress
        self.store = self._open()
        seat = self._add("seats")
        self.arrival = Arrival(
            seat=seat,
            rank=place.rank,
            world_size=place.world_size,
            local_rank=place.local_rank,
            node=node,
            pid=os.getpid(),
            task=place.task,
        )
        self.set_progress("arrived")
        self.store.set(f"{_PREFIX}arrival/{seat}", json.dumps(asdict(self.arrival)))
        self.leads = place.rank == 0 and self._claim_lead()

    def wait_for_ranks(self) -> list[Arrival]:
        """Wait until as many have come as anybody announced, or the time is up; for the leader."""
        deadline = time.monotonic() + self._timeout_s
        while True:
            self.set_progress("wait for the other ranks")
            arrivals = self.arrivals()
            awaited = max(arrival.world_size for arrival in arrivals)
            if len(arrivals) >= awaited or time.monotonic() > deadline:
                return arrivals
            time.sleep(_TICK_S)

    def arrivals(self) -> list[Arrival]:
        """All that have come up to now, by seat."""
        keys = [f"{_PREFIX}arrival/{seat}" for seat in range(1, self._add("seats", 0) + 1)]
        # A rank may have its seat, and not have said who it is.
        known = [key for key in keys if self.store.check([key])]
        return [Arrival(**json.loads(text)) for text in self.store.multi_get(known)]

    def set_progress(self, what: str) -> None:
        """Say what this rank begins, which also is its sign of life."""
        self._on_progress(what)
        self.store.set(f"{_PREFIX}at/{self.arrival.seat}", f"{time.monotonic()} {what}")

    def post(self, topic: str, facts: dict[str, Any]) -> None:
        """Lay down what this rank has found out; plain JSON values."""
        self.store.set(f"{_PREFIX}{topic}/{self.arrival.seat}", json.dumps(facts))

    def collect(
        self, topic: str, arrivals: Sequence[Arrival]
    ) -> tuple[dict[int, dict[str, Any]], dict[int, str]]:
        """Wait for what ranks post; for the leader.

        Returns:
            What they posted, by seat; and of those who show no sign of life any more what they
            had begun.
        """
        posted: dict[int, dict[str, Any]] = {}
        lost: dict[int, str] = {}
        seen = {arrival.seat: ("", time.monotonic()) for arrival in arrivals}
        while pending := [seat for seat in seen if seat not in posted and seat not in lost]:
            self.set_progress(f"collect {topic}")
            for seat in pending:
                key = f"{_PREFIX}{topic}/{seat}"
                if self.store.check([key]):
                    posted[seat] = json.loads(self.store.get(key))
                    continue
                progress = self.store.get(f"{_PREFIX}at/{seat}").decode()
                if progress != seen[seat][0]:
                    seen[seat] = (progress, time.monotonic())
                elif time.monotonic() - seen[seat][1] > self._timeout_s + _SLACK_S:
                    lost[seat] = progress.partition(" ")[2]
            time.sleep(_TICK_S if len(posted) + len(lost) < len(seen) else 0)
        return posted, lost

    def publish(self, key: str, value: str) -> None:
        """Tell all ranks something; for the leader."""
        self.store.set(_PREFIX + key, value)

    def hear(self, key: str) -> str:
        """Wait for what the leader publishes.

        Raises:
            LostLeaderError: It shows no sign of life any more.
        """
        seat: str | None = None
        last, since = b"", time.monotonic()
        try:
            while not self.store.check([_PREFIX + key]):
                self._on_progress("waiting for rank 0")
                if seat is None and self.store.check([f"{_PREFIX}leader"]):
                    seat = self.store.get(f"{_PREFIX}leader").decode()
                progress = b"" if seat is None else self.store.get(f"{_PREFIX}at/{seat}")
                if progress != last:
                    last, since = progress, time.monotonic()
                elif time.monotonic() - since > self._timeout_s + 2 * _SLACK_S:
                    raise LostLeaderError(
                        f"rank 0 has shown no sign of life for {self._timeout_s:g} s"
                        if seat
                        else f"no rank 0 has come within {self._timeout_s:g} s"
                    )
                time.sleep(_TICK_S)
            return str(self.store.get(_PREFIX + key).decode())
        except RuntimeError as error:
            if isinstance(error, LostLeaderError):
                raise
            raise LostLeaderError(f"the connection broke: {_first_line(error)}") from error

    def await_all(self, what: str, count: int) -> None:
        """Wait for all ranks to come to a place in the program; collective.

        Raises:
            RuntimeError: They did not come in time.
        """
        if self._add(what) == count:
            self.store.set(f"{_PREFIX}{what}/all", "here")
        self.store.get(f"{_PREFIX}{what}/all")

    def ask(self, question: str) -> str:
        """Ask the leader, who has to :meth:`answer`."""
        self.store.set(f"{_PREFIX}{question}/asked", "")
        return str(self.store.get(f"{_PREFIX}{question}/answered").decode())

    def answer(self, question: str, say: Callable[[], str]) -> None:
        """Wait for a question, and answer it at once; for the leader."""
        self.store.get(f"{_PREFIX}{question}/asked")
        self.store.set(f"{_PREFIX}{question}/answered", say())

    def leave(self, others: int) -> None:
        """Go, the leader last: the store may be its own.

        Args:
            others: Ranks that the leader waits for a moment; unused by the others.
        """
        if not self.leads:
            self._add("left")
            return
        deadline = time.monotonic() + _FAREWELL_S
        while self._add("left", 0) < others and time.monotonic() < deadline:
            time.sleep(_TICK_S)

    def _open(self) -> distributed.MeetingStore:
        place = self._place
        began = time.monotonic()
        if place.rank == 0 and not distributed.is_store_hosted():
            try:
                return self._connect(is_host=True, timeout_s=self._timeout_s)
            except (TimeoutError, RuntimeError) as error:
                if "EADDRINUSE" not in str(error):
                    reason = f"this rank 0 does not reach itself there ({_first_line(error)})"
                    raise UnreachableError(reason) from error
                # By another rank 0, which will tell of the two; or by a program of its own.
        wait_for_listener(place.address, place.port, self._timeout_s)
        left = max(1.0, self._timeout_s - (time.monotonic() - began))
        try:
            return self._connect(is_host=False, timeout_s=left)
        except (RuntimeError, TimeoutError) as error:
            raise UnreachableError(
                "something else than a rank 0 answers there; the port may be another program's"
            ) from error

    def _connect(self, *, is_host: bool, timeout_s: float) -> distributed.MeetingStore:
        address, port = self._place.address, self._place.port
        return bounded(
            lambda: distributed.open_store(address, port, is_host=is_host, timeout_s=timeout_s),
            timeout_s,
        )

    def _claim_lead(self) -> bool:
        own = str(self.arrival.seat)
        return str(self.store.compare_set(f"{_PREFIX}leader", "", own).decode()) == own

    def _add(self, key: str, number: int = 1) -> int:
        return int(self.store.add(_PREFIX + key, number))


# A launcher that starts its ranks again keeps the store.
_PREFIX = f"doctor/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
