"""Signals that ask a run to stop: SIGTERM, SIGINT, SIGUSR1, SIGUSR2.

While it trains, the handler only sets a flag: the step is finished, a checkpoint saved on which
all ranks agree, and the process ends with :data:`EXIT_STOPPED`, on which a scheduler starts it
again. Before and after the training there is nothing to save, and the run stops at once.
"""

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

EXIT_STOPPED = 75
"""EX_TEMPFAIL of sysexits.h: stopped for a signal, start me again."""

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


class StopRequestedError(Exception):
    """A signal has asked this run, or another rank of it, to stop."""

    step: int | None = None
    """The step that was saved; None where there was nothing to save."""


_received = ""
_interrupts = 0
_may_wait = False
_says = True


def received() -> str:
    """Name of the first signal that this rank got; empty: none."""
    return _received


def is_due() -> bool:
    """Whether this rank got a signal inside a block of :func:`finishing_steps`, to be answered."""
    return _may_wait and bool(_received)


@contextmanager
def listening() -> Iterator[None]:
    """Take signals as requests during a block; in the main thread."""
    global _received, _interrupts
    _received, _interrupts = "", 0
    before = {number: signal.signal(number, _handle) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def recorded(numbers: Sequence[signal.Signals]) -> Iterator[list[signal.Signals]]:
    """Write down signals during a block, in the order of their coming; in the main thread.

    Those that are ignored here (nohup) stay ignored.

    Args:
        numbers: Which ones.
    """
    got: list[signal.Signals] = []

    def record(number: int, frame: FrameType | None) -> None:
        got.append(signal.Signals(number))

    before = {number: signal.getsignal(number) for number in numbers}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, record)
    try:
        yield got
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def finishing_steps() -> Iterator[None]:
    """Only remember signals during a block, which looks at :func:`received` itself.

    Raises:
        StopRequestedError: One came before the block.
    """
    global _may_wait
    _may_wait = True
    try:
        if _received:
            raise StopRequestedError(_received)
        yield
    finally:
        _may_wait = False


@contextmanager
def checking() -> Iterator[None]:
    """Put a signal off until a block of checks is done: what it refuses is worth more.

    Raises:
        StopRequestedError: One came, and nothing was refused.
    """
    global _may_wait, _says
    _may_wait, _says = True, False
    try:
        yield
    finally:
        _may_wait, _says = False, True
    if _received:
        raise StopRequestedError(_received)


def _handle(number: int, frame: FrameType | None) -> None:
    global _received, _interrupts
    is_first = not _received
    # A launcher answers Ctrl-C with a SIGTERM of its own: what the user did is what came first.
    _received = _received or signal.Signals(number).name
    _interrupts += number == signal.SIGINT
    if number == signal.SIGINT and _interrupts > 1:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        raise KeyboardInterrupt
    if not _may_wait:
        raise StopRequestedError(_received)
    if is_first and _says:
        hint = "; press Ctrl-C again to stop at once" if number == signal.SIGINT else ""
        # Not through sys.stderr, which may be in use by what was interrupted.
        os.write(2, f"{_received}: finishing the step and saving{hint}\n".encode())
