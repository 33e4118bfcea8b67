"""Ends a job in which a rank has died or hangs: on every rank, with one line that names it.

Two threads a rank. One tells the others each second where this rank is, and reads where they are
(:mod:`dist_train.beats`); it may wait for the store. The other one judges, never waits, and ends
the process where it has to: the main thread may hang in a collective that no exception reaches.

Exit codes: 3 where another rank died or failed, 4 where a rank hung (:mod:`dist_train.verdict`).
An error of a rank's own goes its usual way, and the others quote it.
"""

import faulthandler
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from dist_train import distributed, processes, progress, stop_signals
from dist_train.beats import Beat, Board, State
from dist_train.processes import Process
from dist_train.stop_signals import StopRequestedError
from dist_train.verdict import GRACE_S, Seen, Verdict, died, judge

INTERVAL_S = 1.0
"""Seconds between two beats."""

HASTE_S = 0.2
"""The same once something is wrong."""

LINGER_S = 3.0
"""Seconds that a rank stays after its line: until all have heard, no launcher may end them."""

LOST_PATIENCE_S = 15.0
"""Seconds to find the rank to whom a connection was lost."""

_STDERR = 2


@contextmanager
def watch(watchdog_s: float, on_orphaned: Callable[[], None] | None = None) -> Iterator["Watchdog"]:
    """Watch the ranks of the process group while a block runs; every rank enters it.

    Where another rank is at fault the process ends inside the block. An error of this rank goes
    on, after the others have been told.

    Args:
        watchdog_s: Seconds that a rank may be without progress.
        on_orphaned: What to do once the launcher was killed, called in a thread of the watchdog;
            default SIGTERM to this process.
    """
    watchdog = Watchdog(watchdog_s, on_orphaned or _terminate)
    watchdog.start()
    try:
        yield watchdog
    except (SystemExit, StopRequestedError):
        watchdog.end("left")
        raise
    except BaseException as error:
        watchdog.explain(error)
        raise
    else:
        watchdog.end("left")


class Watchdog:
    """Watches this rank, and the others with it."""

    def __init__(
        self,
        watchdog_s: float,
        on_orphaned: Callable[[], None],
        board: Board | None = None,
        leave: Callable[[int], object] = os._exit,
    ) -> None:
        """Connect to the job's store, where there is more than one rank.

        Args:
            watchdog_s: Seconds that a rank may be without progress.
            on_orphaned: What to do once the launcher was killed.
            board: Where the ranks meet; default the store of the process group.
            leave: Ends the process with an exit code.
        """
        self.rank = distributed.rank()
        self._watchdog_s = watchdog_s
        self._on_orphaned = on_orphaned
        self._leave = leave
        self._board = board
        if board is None and distributed.world_size() > 1:
            store = distributed.connect_to_store("watchdog", INTERVAL_S * 5)
            self._board = Board(store, self.rank, distributed.world_size())
        self._launchers = processes.launchers()
        self._orphaned: Process | None = None

        self._own = progress.current()
        self._idle_s = self._paused_s = self._raised_at = 0.0
        self._went_on_at = -LOST_PATIENCE_S  # long ago: no clock begins below 0
        self._state: State = "running"
        self._said = ""
        self._number = 0

        self._seen: dict[int, Seen] = {}
        self._read: dict[int, Beat] = {}
        self._reads = 0
        self._suspected_at: int | None = None  # what had been read when the next rank seemed dead
        self._alarm = ""
        self._to_raise: Verdict | None = None
        self._gone = False  # the store
        self._gone_s = 0.0

        self._ended = threading.Event()
        self._leaving = threading.Event()
        self._published = threading.Event()
        self._hurry = threading.Event()
        names = {"watchdog": self._judge_for_ever}
        if self._board is not None:
            names["watchdog-beats"] = self._beat_for_ever
        self._threads = [
            threading.Thread(target=run, name=name, daemon=True) for name, run in names.items()
        ]

    def start(self) -> None:
        """Begin to watch."""
        for thread in self._threads:
            thread.start()

    def end(self, state: State, said: str = "") -> None:
        """Stop watching, and tell the others why this rank no longer beats."""
        if self._leaving.is_set():  # the other thread ends the process, with its own code
            threading.Event().wait(2 * LINGER_S + 2 * INTERVAL_S)
        self._state, self._said = state, said
        self._published.clear()
        self._hurry.set()
        if self._board is not None and not self._gone:
            self._published.wait(2 * INTERVAL_S)
            if state == "failed" and self.rank == 0:
                self._wait_until_all_have_heard()
        self._ended.set()
        for thread in self._threads:
            thread.join(2 * INTERVAL_S)
        faulthandler.cancel_dump_traceback_later()

    def explain(self, error: BaseException) -> None:
        """Find out whether an error is another rank's fault; then this does not return.

        Where it returns the error is this rank's own, and the others know of it.
        """
        if self._board is not None and is_lost_connection(error):
            self._state = "lost"
            self._hurry.set()
            self._wait_for_verdict()
        first_line = str(error).partition("\n")[0]
        self.end("failed", f"{type(error).__name__}: {first_line}".rstrip(": "))

    def _wait_for_verdict(self) -> None:
        deadline = time.monotonic() + LOST_PATIENCE_S
        while time.monotonic() < deadline and not self._leaving.is_set():
            has_left = any(beat.state == "left" for beat in list(self._read.values()))
            if has_left and stop_signals.received():  # all were told to stop, and one was faster
                return
            # A launcher sends SIGTERM as soon as one rank has died: which one is still to be said.
            with suppress(StopRequestedError):
                self._leaving.wait(HASTE_S)

    def _wait_until_all_have_heard(self) -> None:
        """Rank 0 is read by all, and may hold the store: it stays a moment after its error."""
        deadline = time.monotonic() + 2.5 * INTERVAL_S
        while time.monotonic() < deadline:
            others = [beat for rank, beat in self._read.items() if rank != self.rank]
            if others and all(beat.state != "running" for beat in others):
                break
            time.sleep(HASTE_S / 2)

    def _interval(self) -> float:
        return INTERVAL_S if self._state == "running" else HASTE_S

    # Telling and hearing: may wait for the store.

    def _beat_for_ever(self) -> None:
        assert self._board is not None
        while True:
            ended = self._ended.is_set()
            try:
                state = self._state
                self._board.publish(self._beat())
                if self._to_raise is not None:
                    self._board.raise_alarm(self._to_raise.to_text())
                alarm, read = self._board.read()
            except RuntimeError as error:
                if distributed.is_store_lost(error):
                    self._gone = True
                    return
                continue  # it was too slow: whoever holds it will be judged by its silence
            self._read, self._alarm, self._reads = read, alarm, self._reads + 1
            if state == self._state:
                self._published.set()
            if ended:
                return
            self._hurry.wait(self._interval())
            self._hurry.clear()

    def _beat(self) -> Beat:
        self._number += 1
        own, process = progress.current(), processes.this_process()
        return Beat(
            number=self._number,
            phase=own.phase,
            place=own.place,
            step=own.step or 0,
            idle_s=self._idle_s,
            patience=own.patience,
            marked_at=time.time() - (time.monotonic() - own.at),
            exchanges=distributed.exchanges(),
            state=self._state,
            said=self._said,
            machine=processes.this_machine(),
            pid=process.pid,
            started=process.started,
        )

    # Judging: never waits for anything.

    def _judge_for_ever(self) -> None:
        before = time.monotonic()
        while not self._ended.wait(self._interval()):
            now = time.monotonic()
            # What counts is time that this thread was awake: a job that was stopped as a whole
            # and goes on has not hung meanwhile.
            awake = min(now - before, 2 * INTERVAL_S)
            if now - before > GRACE_S:
                self._paused_s, self._went_on_at = now - before, now
            before = now
            self._observe(awake)
            self._notice_orphaned()
            verdict = self._find_verdict()
            if verdict is not None and self._state in ("running", "lost"):
                self._stop(self._own_absence(verdict) or verdict)
                return

    def _observe(self, awake: float) -> None:
        # For what keeps Python's threads from running at all: a call that never gives up the lock.
        # Each time a thread of its own: where memory has run out, there is none to be had.
        with suppress(RuntimeError):
            faulthandler.dump_traceback_later(self._watchdog_s + GRACE_S, file=_STDERR)
        position = progress.current()
        moved = (position.marks, position.at) != (self._own.marks, self._own.at)
        self._own, self._idle_s = position, 0.0 if moved else self._idle_s + awake
        self._gone_s = self._gone_s + awake if self._gone else 0.0
        for rank, beat in self._read.items():
            known = self._seen.get(rank)
            is_new = known is None or known.beat.number != beat.number
            silent_s = 0.0 if known is None or is_new else known.silent_s + awake
            failed_s = 0.0 if known is None or beat.state != "failed" else known.failed_s + awake
            self._seen[rank] = Seen(beat=beat, silent_s=silent_s, failed_s=failed_s)

    def _notice_orphaned(self) -> None:
        if self._orphaned is not None:
            return
        dead = [launcher for launcher in self._launchers if not launcher.is_running()]
        if dead:
            self._orphaned = dead[0]
            _say(f"warning: {_named(dead[0])} is gone; rank {self.rank} stops without it.")
            self._on_orphaned()

    def _find_verdict(self) -> Verdict | None:
        if self._alarm:
            return Verdict.from_text(self._alarm)
        if self._board is None:
            return self._judge_alone()
        if self._gone:
            return self._judge_without_store()
        # While its answer is under way a rank is silent by its own doing.
        seen = self._seen if self.rank == 0 else {0: self._seen[0]} if 0 in self._seen else {}
        verdict = self._find_dead_neighbour() or self._judge_rank_0_or_all(seen)
        if verdict is not None and self._to_raise is None:
            self._to_raise = verdict
            self._hurry.set()
            self._raised_at = time.monotonic()
            return None
        if self._to_raise is not None and time.monotonic() - self._raised_at > 2 * INTERVAL_S:
            return self._to_raise  # the store does not answer
        return None

    def _judge_rank_0_or_all(self, seen: dict[int, Seen]) -> Verdict | None:
        if self.rank == 0:
            return judge(seen, self._watchdog_s)
        if 0 not in seen or seen[0].beat.state == "left":
            return None
        # Whether rank 0 is behind the others only it can tell; that it is silent all can.
        own = Seen(beat=self._beat_of_own())
        verdict = judge({0: seen[0], self.rank: own}, self._watchdog_s)
        return verdict if verdict is not None and verdict.kind != "hung" else None

    def _beat_of_own(self) -> Beat:
        beat = self._beat()
        self._number -= 1
        return beat

    def _find_dead_neighbour(self) -> Verdict | None:
        """Look for the process of the next rank, where it is on this machine."""
        assert self._board is not None
        rank = self._board.next
        beat = self._read.get(rank)
        if beat is None or beat.state not in ("running", "lost"):
            return None
        if not beat.machine or beat.machine != processes.this_machine():
            return None
        if Process(pid=beat.pid, started=beat.started).is_running():
            return None
        if self._suspected_at is None:  # its last words may not have been read yet
            self._suspected_at = self._reads
            self._hurry.set()
            return None
        return died(rank, beat) if self._reads > self._suspected_at + 1 or self._gone else None

    def _judge_without_store(self) -> Verdict | None:
        """Rank 0 held the store, or the launcher of its machine did."""
        if self._orphaned is not None:
            if self._state != "lost":
                return self._judge_alone()
            return Verdict(
                kind="orphaned", rank=self.rank, place=self._own.place, said=_named(self._orphaned)
            )
        first = self._seen.get(0)
        if self.rank != 0 and first is not None and first.beat.state != "left":
            if first.beat.state == "failed":
                return Verdict(kind="failed", rank=0, place=first.beat.place, said=first.beat.said)
            held_by_launcher = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
            if self._state == "lost" or (not held_by_launcher and first.silent_s >= GRACE_S):
                return died(0, first.beat)
        return self._judge_alone()

    def _own_absence(self, verdict: Verdict) -> Verdict | None:
        """Say that this rank was stopped, where it finds the others gone on waking up."""
        if verdict.kind != "died" or time.monotonic() - self._went_on_at > LOST_PATIENCE_S:
            return None
        return Verdict(
            kind="silent",
            rank=self.rank,
            place=self._own.place,
            seconds=self._paused_s,
            said="its machine",
        )

    def _judge_alone(self) -> Verdict | None:
        # As long as there was a store it may have waited for others, and was judged with them.
        idle_s = self._idle_s if self._board is None else min(self._idle_s, self._gone_s)
        if idle_s < self._watchdog_s * self._own.patience:
            return None
        return Verdict(kind="hung", rank=self.rank, place=self._own.place, seconds=self._idle_s)

    def _stop(self, verdict: Verdict) -> None:
        """End this process."""
        self._leaving.set()
        _say(f"error: {verdict.line}")
        if verdict.kind == "hung" and verdict.rank == self.rank:
            _show_stacks()
        if self._board is not None and not self._gone:
            time.sleep(LINGER_S)
        for child in multiprocessing.active_children():  # the workers of a data loader
            child.kill()
        # Not by this thread: what hangs may be the output.
        flush = threading.Thread(target=sys.stdout.flush, daemon=True)
        flush.start()
        flush.join(INTERVAL_S)
        self._leave(verdict.code)


def is_lost_connection(error: BaseException) -> bool:
    """Whether an error, or one that it quotes or comes from, is of a connection between ranks."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        if isinstance(cause, RuntimeError) and (
            distributed.is_connection_error(cause) or _CONNECTION.search(str(cause))
        ):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


# What gloo and NCCL write. They have no types of their own in a thread or in a quoted message.
_CONNECTION = re.compile(
    r"gloo/transport|Connection (closed|reset) by peer|NCCL (error|communicator)|ncclRemoteError"
    r"|ncclSystemError|Socket Timeout|TCPStore"
)


def _terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def _named(launcher: Process) -> str:
    return f"the launcher ({launcher.name}, process {launcher.pid})"


def _show_stacks() -> None:
    """Write what every thread is doing, the main one first.

    For faulthandler begins at the newest thread and ends after a hundred. Without the lines of
    source: the file system that they lie on may be what hangs.
    """
    with suppress(Exception):
        frame = sys._current_frames()[threading.main_thread().ident or 0]
        calls = [
            f'  File "{call.f_code.co_filename}", line {line} in {call.f_code.co_name}'
            for call, line in traceback.walk_stack(frame)
        ]
        _say("\n".join(["Main thread (most recent call first):", *calls]))
    faulthandler.dump_traceback(file=_STDERR, all_threads=True)


def _say(line: str) -> None:
    """Write one line past Python's buffers, which the main thread may hold; in one piece."""
    with suppress(OSError):  # whoever read it may have gone with the launcher
        os.write(_STDERR, f"{line}\n".encode())
