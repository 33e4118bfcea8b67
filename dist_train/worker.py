"""One thread that does what it is given, in the order in which it was given it.

Collective work stays in step over the ranks this way: all of them give it in the same order.
"""

import queue
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, ParamSpec, TypeAlias, TypeVar

import torch

from dist_train import progress

P = ParamSpec("P")
R = TypeVar("R")
_Work: TypeAlias = "queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]"

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
        self._work: _Work = queue.SimpleQueue()
        # The current CUDA device is a thread's own.
        device = torch.cuda.current_device() if torch.cuda.is_available() else None
        self._abandoned = threading.Event()
        # It must not hold this object, or that would never be let go.
        given = (self._work, self._abandoned, device)
        self._thread = threading.Thread(target=_run, args=given, name=name, daemon=True)
        self._thread.start()
        weakref.finalize(self, self._work.put, None)
        _running.add(self)

    def submit(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Do something after all that was given before; returns at once."""
        future: Future[R] = _Answer(self._thread)
        self._work.put((future, lambda: function(*args, **kwargs)))
        return future

    def close(self) -> None:
        """End the thread once it has done what it was given."""
        self._work.put(None)

    def abandon(self) -> None:
        """End the thread: forget what it has not begun, wait a while for what it has."""
        self._abandoned.set()
        self.close()
        self._thread.join(PATIENCE_S)


def _run(work: _Work, abandoned: threading.Event, device: int | None) -> None:
    if device is not None:
        torch.cuda.set_device(device)
    while (item := work.get()) is not None:
        future, call = item
        if abandoned.is_set():
            future.cancel()
            continue
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)
        del item, future, call  # or the last result would be kept until the next one


def abandon_all() -> None:
    """End every thread: one that computes while the interpreter ends would abort the process."""
    for worker in list(_running):
        worker.abandon()


_running: "weakref.WeakSet[OrderedWorker]" = weakref.WeakSet()
