"""The last resort: a process that no longer gets on ends itself.

Most waits end by themselves. A call into a store whose machine is gone or stopped may not, and it
holds what every later call needs.
"""

import os
import threading
import time
from collections.abc import Callable

_TICK_S = 0.2


class Deadman:
    """Ends the process unless it is touched often enough; from its making to :meth:`release`."""

    def __init__(self, limit_s: float, last_words: Callable[[str], None]) -> None:
        """Begin.

        Args:
            limit_s: Seconds between two touches at most.
            last_words: Called with what was begun last, before the process ends with code 1.
        """
        self._limit_s = limit_s
        self._last_words = last_words
        self._touched = (time.monotonic(), "start")
        self._released = threading.Event()
        threading.Thread(target=self._watch, name="deadman", daemon=True).start()

    def touch(self, what: str) -> None:
        """Say that something has ended, and what begins."""
        self._touched = (time.monotonic(), what)

    def release(self) -> None:
        """Let the process live."""
        self._released.set()

    def _watch(self) -> None:
        while not self._released.wait(_TICK_S):
            since, what = self._touched
            if time.monotonic() - since > self._limit_s:
                self._last_words(what)
                os._exit(1)
