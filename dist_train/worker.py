"""One thread that does what it is given, in the order in which it was given it.

Collective work stays in step over the ranks this way: all of them give it in the same order.
"""

import queue
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, ParamSpec, TypeVar

import torch

from dist_train import progress

P = ParamSpec("P")
R = TypeVar("R")

# How long the end of a process waits for what a thread has begun: a search, not a whole bank.
PATIENCE_S = 5.0


class _Answer(Future[R]):
    """A future for which the one who waits takes the thread's progress as its own."""

    def __init__(self, thread: threading.Thread) -> None:
        super().__init__()
        self._thread = thread

    def result(self, timeout: float | None = None) -> R:
        with progress.waiting_for(self._thread):
            return super().result(timeout)


class OrderedWorker:
    """A daemon thread, so that a process whose peer is lost can end while it still waits.

    It ends with its owner too, who need not close it.
    """

    def __init__(self, name: str) -> None:
        self._loop = _Loop(name)
        weakref.finalize(self, self._loop.close)

    def submit(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Do something after all that was given before; returns at once."""
        future: Future[R] = _Answer(self._loop.thread)
        self._loop.work.put((future, lambda: function(*args, **kwargs)))
        return future

    def close(self) -> None:
        """End the thread once it has done what it was given."""
        self._loop.close()

    def abandon(self) -> None:
        """End the thread: forget what it has not begun, wait a while for what it has."""
        self._loop.abandon()


class _Loop:
    """What the thread runs. It must not hold its owner, or that would never be let go."""

    def __init__(self, name: str) -> None:
        self.work: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]
        self.work = queue.SimpleQueue()
        # The current CUDA device is a thread's own.
        self._device = torch.cuda.current_device() if torch.cuda.is_available() else None
        self._abandoned = False
        self.thread = threading.Thread(target=self._run, name=name, daemon=True)
        _running.add(self)
        self.thread.start()

    def close(self) -> None:
        self.work.put(None)

    def abandon(self) -> None:
        self._abandoned = True
        self.close()
        self.thread.join(PATIENCE_S)

    def _run(self) -> None:
        try:
            if self._device is not None:
                torch.cuda.set_device(self._device)
            while (item := self.work.get()) is not None:
                future, call = item
                if self._abandoned:
                    future.cancel()
                    continue
                try:
                    future.set_result(call())
                except BaseException as error:
                    future.set_exception(error)
                del item, future, call  # or the last result would be kept until the next one
        finally:
            _running.discard(self)


def abandon_all() -> None:
    """End every thread: one that computes while the interpreter ends would abort the process."""
    for loop in list(_running):
        loop.abandon()


_running: set[_Loop] = set()
