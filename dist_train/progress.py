"""Where this process is: the phase and step of its main thread, and whether it still gets on.

Whoever works for long says so: :func:`enter` where something new begins, :func:`mark` after every
piece of it. The watchdog ends the job when the marks stop. Free of torch, and cheap enough to be
called several times in a step.

Each thread has a place of its own. What threads in the background do must not hide that the main
thread hangs, so theirs counts only while the main thread waits for them.
"""

import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True, slots=True)
class Position:
    """Where a thread is."""

    phase: str
    """What it does."""

    step: int | None = None
    """Optimizer step that it is in, counted from 1; None before the first."""

    marks: int = 0
    """Signs of progress so far."""

    at: float = 0.0
    """When the last one was given, by ``time.monotonic()``."""

    patience: float = 1.0
    """How many times ``train.watchdog_s`` the next one may take."""

    @property
    def place(self) -> str:
        """Step and phase, as messages name them."""
        return self.phase if self.step is None else f"step {self.step}, {self.phase}"


def enter(phase: str, step: int | None = None, *, patience: float = 1.0) -> None:
    """Begin something: sets the phase of this thread and counts as a mark.

    Args:
        phase: What begins, in the words of a message.
        step: Optimizer step, counted from 1; None: still the same.
        patience: How many times ``train.watchdog_s`` the next mark may take. More than 1 only
            for what cannot give marks, such as the load of a large backbone.
    """
    thread = threading.current_thread()
    before = _positions.get(thread, _BEGINNING)
    _positions[thread] = Position(
        phase=phase,
        step=before.step if step is None else step,
        marks=before.marks + 1,
        at=time.monotonic(),
        patience=patience,
    )


def mark() -> None:
    """Count a sign of progress inside a phase: one more batch scored, one more chunk encoded."""
    thread = threading.current_thread()
    before = _positions.get(thread, _BEGINNING)
    _positions[thread] = replace(before, marks=before.marks + 1, at=time.monotonic())


@contextmanager
def waiting_for(thread: threading.Thread) -> Iterator[None]:
    """Count the marks of another thread as this one's, while it waits for that thread.

    Nothing where it is not the main thread that waits.
    """
    global _awaited
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before, _awaited = _awaited, thread
    try:
        yield
    finally:
        _awaited = before


def current() -> Position:
    """Where the main thread is, with the thread it waits for; from any thread."""
    own = _positions.get(threading.main_thread(), _BEGINNING)
    awaited = _awaited
    if awaited is None or (other := _positions.get(awaited)) is None:
        return own
    return replace(
        own,
        phase=f"{own.phase}: {other.phase}" if other.phase else own.phase,
        marks=own.marks + other.marks,
        at=max(own.at, other.at),
        patience=max(own.patience, other.patience),
    )


# Each thread replaces its own entry alone, which needs no lock. By the thread and not by its
# number: the system gives the number of one that ended to the next, which would inherit its place.
_positions: weakref.WeakKeyDictionary[threading.Thread, Position] = weakref.WeakKeyDictionary(
    {threading.main_thread(): Position(phase="starting")}
)
_BEGINNING = Position(phase="")
_awaited: threading.Thread | None = None
