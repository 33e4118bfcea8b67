"""A launcher and its ranks, looked after: signals reach the ranks, and nothing outlives them.

A launcher is no good at signals. That of DeepSpeed dies of SIGUSR1 and SIGUSR2 and leaves its ranks
behind; on SIGTERM and SIGINT, and as soon as one rank ends with a code other than 0, it kills the
others after 30 seconds, in the middle of a checkpoint or not. So it gets a session of its own,
where no signal of a terminal reaches it, and a signal to this process goes to the ranks alone. The
launcher is suspended while they save, and goes on when they have ended. Processes whose parent
dies become children of this one, so they are found and ended whatever the launcher did.

Linux only: processes are found in /proc.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dist_train.stop_signals import recorded

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
"""What asks the ranks to save and stop; they get a closed terminal's SIGHUP as SIGTERM."""

GRACE_S = 600.0
"""Seconds that ranks may take to save and end, before they are killed."""

_TICK_S = 0.2
_LAUNCHER_GRACE_S = 30.0  # to notice that its ranks have ended; it looks once a second
_LEFTOVER_GRACE_S = 5.0
_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a launcher and its ranks ended."""

    code: int
    """Exit code of the launcher; 128 + n where signal n ended it."""

    signal: signal.Signals | None
    """The first signal that asked them to stop; None where nobody asked."""


@dataclass(frozen=True)
class _Process:
    pid: int
    parent: int
    state: str


def supervise(command: Sequence[str], *, grace_s: float = GRACE_S) -> Ended:
    """Run a launcher until it and all its ranks have ended; only in the main thread.

    A second SIGINT, or ``grace_s`` seconds after the first signal, kills them.

    Args:
        command: The launcher, or a single rank.
        grace_s: Seconds that ranks may take to save and end.
    """
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    with recorded(STOP_SIGNALS) as received:
        launcher = subprocess.Popen(command, start_new_session=True)
        try:
            first = _Watch(launcher, received, grace_s).wait()
        finally:
            _end_descendants(launcher)
    code = launcher.returncode
    return Ended(code=128 - code if code < 0 else code, signal=first)


class _Watch:
    """Waits for a launcher and its ranks, and passes signals on."""

    def __init__(
        self, launcher: "subprocess.Popen[bytes]", received: list[signal.Signals], grace_s: float
    ) -> None:
        self._launcher = launcher
        self._received = received  # filled by the signal handlers
        self._grace_s = grace_s
        self._first: signal.Signals | None = None
        self._wanted = signal.SIGTERM
        self._told: set[int] = set()
        self._interrupts = 0
        self._deadline: float | None = None
        self._known: set[int] = set()  # ids of ranks

    def wait(self) -> signal.Signals | None:
        """Return when nothing is left to wait for, with the first signal that came."""
        while True:
            self._read_signals()
            if self._deadline is None:
                if self._launcher.poll() is None:
                    if not self._known:  # before their launcher can die and leave them
                        self._ranks()
                    time.sleep(_TICK_S)
                    continue
                # It is gone, and may have left ranks behind: they are to save, too.
                self._deadline = time.monotonic() + self._grace_s
            ranks = self._ranks()
            if not ranks:
                break
            if self._interrupts > 1 or time.monotonic() > self._deadline:
                return self._first
            for rank in ranks:
                self._stop(rank)
            time.sleep(_TICK_S)
        if self._known:
            self._let_launcher_end()
        return self._first

    def _read_signals(self) -> None:
        while self._received:
            self._wanted = self._received.pop(0)
            self._told.clear()
            self._first = self._first or self._wanted
            self._interrupts += self._wanted is signal.SIGINT
            self._deadline = self._deadline or time.monotonic() + self._grace_s

    def _ranks(self) -> "list[_Process]":
        """The living ranks.

        A rank has LOCAL_RANK in its environment, and its parent has not. What it starts inherits
        that, and becomes a child of this process when the rank has ended: it is none of ours to
        signal. Where there never was a rank, the launcher counts as one.
        """
        family = [process for process in _descendants() if process.state != "Z"]
        having = {process.pid for process in family if _has_local_rank(process.pid)}
        self._known |= {
            process.pid
            for process in family
            if process.pid in having and process.parent not in {*having, os.getpid()}
        }
        known = self._known or {self._launcher.pid}
        return [process for process in family if process.pid in known]

    def _stop(self, rank: "_Process") -> None:
        """Ask a rank to save, once per signal, and keep its launcher from interfering."""
        if rank.parent != os.getpid():
            _send(rank.parent, signal.SIGSTOP)
        if rank.pid not in self._told:
            _send(rank.pid, signal.SIGTERM if self._wanted is signal.SIGHUP else self._wanted)
            self._told.add(rank.pid)

    def _let_launcher_end(self) -> None:
        """Let the launcher find that its ranks have ended, and with which code."""
        _continue(_descendants())
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._launcher.wait(_LAUNCHER_GRACE_S)


def _has_local_rank(pid: int) -> bool:
    try:
        content = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:  # it has just ended
        return False
    return any(entry.startswith(b"LOCAL_RANK=") for entry in content.split(b"\0"))


def _descendants() -> list[_Process]:
    """All processes below this one, ended ones included whose code nobody has taken."""
    children: dict[int, list[_Process]] = {}
    for process in _all_processes():
        children.setdefault(process.parent, []).append(process)
    found: list[_Process] = []
    parents = [os.getpid()]
    while parents:
        below = children.get(parents.pop(), [])
        found += below
        parents += [process.pid for process in below]
    return found


def _all_processes() -> Iterator[_Process]:
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            text = (folder / "stat").read_text(encoding="utf-8", errors="replace")
        except OSError:  # it has just ended
            continue
        # pid (name) state parent ...; the name may hold spaces and brackets.
        state, parent = text.rpartition(")")[2].split()[:2]
        yield _Process(pid=int(folder.name), parent=int(parent), state=state)


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has just ended
        os.kill(pid, number)


def _continue(processes: Sequence[_Process]) -> None:
    for process in processes:
        if process.state == "T":
            _send(process.pid, signal.SIGCONT)


def _end_descendants(launcher: "subprocess.Popen[bytes]") -> None:
    """End whatever still runs below this process, and take its exit codes."""
    for number, patience_s in ((signal.SIGTERM, _LEFTOVER_GRACE_S), (signal.SIGKILL, 60.0)):
        deadline = time.monotonic() + patience_s
        told: set[int] = set()
        while time.monotonic() < deadline:
            launcher.poll()
            left = _descendants()
            for process in left:
                if process.state == "Z" and process.parent == os.getpid():
                    with contextlib.suppress(ChildProcessError):
                        os.waitpid(process.pid, os.WNOHANG)
                elif process.pid not in told:
                    _send(process.pid, number)
                    told.add(process.pid)
            _continue(left)
            if not left:
                return
            time.sleep(_TICK_S / 4)
