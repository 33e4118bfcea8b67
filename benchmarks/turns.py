"""Contestants of a benchmark that take turns: each in a process of its own, still between turns.

So each one's peak memory is its own, and no two of them compute at the same time.
"""

import contextlib
import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from benchmarks.rank_processes import peak_memory_gib


class Contestant:
    """An object in a fresh process; its methods are called from here, one at a time."""

    def __init__(
        self, name: str, make: Callable[..., object], *args: object, wait: bool = True
    ) -> None:
        """Start the process and call ``make(*args)`` in it; blocks until that is done.

        Args:
            name: For messages.
            make: A module-level function or a class.
            args: Picklable.
            wait: False: do not block, :meth:`answer` does. For ranks that wait for each other.

        Raises:
            RuntimeError: ``make`` failed; its traceback is on stderr.
        """
        self.name = name
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make, args), daemon=True)
        self._process.start()
        theirs.close()
        if wait:
            self.answer()

    @property
    def pid(self) -> int:
        """Its process."""
        assert self._process.pid is not None  # started when it was made
        return self._process.pid

    def __enter__(self) -> Self:
        """Nothing to do: the process runs since it was made."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._connection.close()
        self._process.join()

    def call(self, method: str, *args: object) -> Any:
        """Call a method there and wait for what it returns.

        Raises:
            RuntimeError: It failed; its traceback is on stderr.
        """
        self.ask(method, *args)
        return self.answer()

    def ask(self, method: str, *args: object) -> None:
        """Let it call a method, and do not wait for it."""
        self._connection.send((method, args))

    def answer(self) -> Any:
        """Wait for what was asked last.

        Raises:
            RuntimeError: As :meth:`call`.
        """
        try:
            return self._connection.recv()
        except EOFError:
            self._process.join()
            raise RuntimeError(
                f"{self.name} failed with exit code {self._process.exitcode}: see its traceback "
                "above."
            ) from None


def _serve(connection: Connection, make: Callable[..., object], args: tuple[object, ...]) -> None:
    contestant = make(*args)
    connection.send(None)
    while True:
        try:
            method, method_args = connection.recv()
        except EOFError:  # the benchmark is over
            return
        connection.send(getattr(contestant, method)(*method_args))


class Usage:
    """Seconds and peak memory of what runs inside ``with``, on the GPU where there is one."""

    seconds: float
    """Wall time, the GPU's queue emptied."""

    idle_gib: float
    """Memory before: resident, or allocated on the GPU."""

    peak_gib: float
    """Largest memory meanwhile. Where Linux refuses to forget an older peak: since the start."""

    def __enter__(self) -> Self:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self.idle_gib = torch.cuda.memory_allocated() / 2**30
        else:
            _forget_peak()
            self.idle_gib = peak_memory_gib()
        self._began = time.perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds = time.perf_counter() - self._began
        on_gpu = torch.cuda.is_available()
        self.peak_gib = torch.cuda.max_memory_allocated() / 2**30 if on_gpu else peak_memory_gib()


def _forget_peak() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM becomes the present size
