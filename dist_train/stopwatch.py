"""A clock that can stand still, so that throughput does not count validation."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Seconds since the start or the last lap, pauses left out."""

    def __init__(self) -> None:
        self._from = time.monotonic()

    def lap(self) -> float:
        """Return the seconds of this lap and begin the next."""
        now = time.monotonic()
        seconds, self._from = now - self._from, now
        return seconds

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let the clock stand still during a block."""
        stopped = time.monotonic()
        try:
            yield
        finally:
            self._from += time.monotonic() - stopped
