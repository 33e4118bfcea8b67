"""What of a process's memory and time belongs to which part of a training, and what grew last.

    with account.phase("forward"):
        output = engine(...)

measures before and after. The growth belongs to the part that the phase fills; an error that passes
through is remembered with its innermost phase, wherever it is caught. A measurement takes about
20 microseconds on a CPU. Phases that overlap in threads count each other's growth as their own.
"""

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

from dist_train.allocation_failure import AllocationFailure, chain, find_failure
from dist_train.process_memory import MemoryUse, measure


@dataclass(frozen=True)
class Phase:
    """A stretch of a run, and the part of its memory that it fills."""

    doing: str
    """Where an error happened: out of memory while ..."""

    part: str


PHASES = {
    "data": Phase("reading the data", "the series"),
    "ridge": Phase("solving the ridge", "the ridge's normal equations"),
    "backbone": Phase("loading the backbone", "frozen weights"),
    "layers": Phase("building the layers around the backbone", "trained weights"),
    "bank": Phase("building the memory bank", "keys and index of the bank"),
    "engine": Phase("preparing DeepSpeed", "weights, their float32 copies, gradient buffers"),
    "loading": Phase("waiting for a batch", "training batches"),
    "search": Phase("searching the memory bank", "neighbours of a batch"),
    "forward": Phase("computing forward", "activations"),
    "backward": Phase("computing backward", "gradients, beside the activations"),
    "optimizer": Phase("updating the weights", "optimizer state"),
    "evaluation": Phase("evaluating", "activations of an evaluation batch"),
    "checkpoint": Phase("saving a checkpoint", "the gathered checkpoint"),
}
"""By the names that :meth:`MemoryAccount.phase` takes."""


@dataclass(frozen=True, kw_only=True)
class FailedPhase:
    """Where memory was used up."""

    name: str
    failure: AllocationFailure
    grown: MemoryUse
    """Since the phase began."""

    use: MemoryUse
    """In all."""


class MemoryAccount:
    """How much each part of a training has grown."""

    def __init__(self) -> None:
        self._grown: dict[str, MemoryUse] = {}
        self._failed: FailedPhase | None = None
        self._seconds: dict[str, float] = {}
        self._open = threading.local()

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count what a block allocates as the part of a phase; blocks may be nested.

        Args:
            name: Key of :data:`PHASES`.
        """
        assert name in PHASES, name
        before = measure()
        try:
            with self._clock(name):
                yield
        except Exception as error:
            self._remember(error, name, before)
            raise
        grown = measure().since(before)
        self._grown[name] = grown.largest(self._grown.get(name, grown))

    def grown(self, name: str) -> MemoryUse:
        """The most that one block of a phase has left behind."""
        return self._grown.get(name, MemoryUse())

    def seconds(self) -> dict[str, float]:
        """Seconds spent in each phase so far, without the phases inside it, in order of size.

        Phases of a thread beside the training count too, so the sum may exceed the time that went
        by.
        """
        return dict(sorted(self._seconds.items(), key=lambda item: -item[1]))

    def cost(self) -> dict[str, dict[str, float]]:
        """Seconds spent on each part, and GiB that each has added, by what people call it."""
        spent = {PHASES[name].doing: round(value, 2) for name, value in self.seconds().items()}
        spent = {doing: value for doing, value in spent.items() if value > 0}
        grown = {
            PHASES[name].part: round(max(use.resident, use.gpu) / 2**30, 3)
            for name, use in self._grown.items()
        }
        largest = sorted(grown.items(), key=lambda item: -item[1])
        return {"seconds": spent, "gib": {part: gib for part, gib in largest if gib >= 0.01}}

    @contextlib.contextmanager
    def _clock(self, name: str) -> Iterator[None]:
        """Count the seconds of a block, less those of the blocks inside it."""
        inside: list[float] = getattr(self._open, "inside", None) or [0.0]
        self._open.inside = inside
        inside.append(0.0)
        started = time.monotonic()
        try:
            yield
        finally:
            passed = time.monotonic() - started
            own = passed - inside.pop()
            inside[-1] += passed
            self._seconds[name] = self._seconds.get(name, 0.0) + own

    def failed_phase(self, error: BaseException) -> FailedPhase | None:
        """The innermost phase that an error came through; None where it was in none."""
        failed = self._failed
        if failed is not None and any(one is failed.failure.error for one in chain(error)):
            return failed
        return None

    def forget(self) -> None:
        """Let go of the error, and of all that its traceback holds."""
        self._failed = None

    def _remember(self, error: Exception, name: str, before: MemoryUse) -> None:
        failure = find_failure(error)
        if failure is not None and self.failed_phase(error) is None:
            use = measure()
            self._failed = FailedPhase(name=name, failure=failure, grown=use.since(before), use=use)


account = MemoryAccount()
"""This process's own: memory is the process's, whoever asks for it."""
