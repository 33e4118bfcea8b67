"""``--profile``: record a few optimizer steps with the torch profiler, on every rank.

The first :data:`SKIPPED_STEPS` steps are left out, the next ``train.profile_steps`` recorded, and
the files written at once, into ``RUN/profile/``:

    summary.md              what the steps spent time and memory on (written by rank 0)
    trace_rank<r>.json.gz   for https://ui.perfetto.dev or chrome://tracing
    memory_rank<r>.pickle   on a GPU, for https://pytorch.org/memory_viz

Nothing is attached to the model outside these steps. What a run computes stays the same, bit for
bit; a profile that fails is reported and lost, the training is not.
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from torch import nn
from torch.profiler import ProfilerAction, ProfilerActivity, profile, record_function

from dist_train import distributed, profile_report, progress, terminal
from dist_train.config import SKIPPED_STEPS, RunConfig
from dist_train.engine import Engine, whole_numel
from dist_train.process_memory import peak_resident
from dist_train.profile_report import Operator, Recording, Sizes
from dist_train.step_breakdown import PREFIX, break_down
from memory_index.atomic_file import write_text

MODEL_PARTS = (
    "patching", "trend", "memory", "prototypes", "reprogramming", "backbone", "head", "anchor",
)  # fmt: skip
"""Attributes of the forecaster that get a row of their own; absent ones have none."""

_HISTORY = 200_000  # allocations that a snapshot of GPU memory remembers

T = TypeVar("T")


class NoProfiler:
    """What training uses when nobody asked for a profile: only the watchdog hears of the parts."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def part(self, name: str) -> AbstractContextManager[object]:
        """Name what a block does."""
        progress.enter(name)
        return nullcontext()

    def iterate(self, name: str, items: Iterable[T]) -> Iterator[T]:
        """Name what waiting for the next item is."""
        iterator = iter(items)
        while True:
            with self.part(name):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    def step(self) -> None:
        """Count an optimizer step; collective where there is a profile."""

    def finish(self) -> None:
        """Write what was recorded, if that has not been done; collective likewise."""


class StepProfiler(NoProfiler):
    """Record steps and write them down; a context manager around the training."""

    def __init__(
        self, folder: Path, run: str, engine: Engine, num_steps: int, *, quiet: bool = False
    ) -> None:
        """Prepare; nothing is attached yet.

        Args:
            folder: Made when there is something to write.
            run: Its name, for the title.
            engine: Its module gets hooks while steps are recorded.
            num_steps: Steps to record.
            quiet: Do not say where the profile lies.
        """
        self._quiet = quiet
        self._folder = folder
        self._run = run
        self._engine = engine
        self._num_steps = num_steps
        self._profile: profile | None = None
        self._hooks: list[Any] = []
        self._steps_done, self._finished, self._failed = 0, False, False
        self._clock, self._plain_step_ms = time.monotonic(), 0.0
        self._device_start = 0

    def __exit__(self, *_: object) -> None:
        # After an error the other ranks may be anywhere: nothing collective, only let go.
        self._guarded("be stopped", self._detach)

    def part(self, name: str) -> AbstractContextManager[object]:
        """Name what a block does."""
        progress.enter(name)
        return record_function(PREFIX + name) if self._hooks else nullcontext()

    def step(self) -> None:
        """Count an optimizer step, and go on to what the next one is for; collective."""
        if self._finished:
            return
        self._steps_done += 1
        if self._steps_done == SKIPPED_STEPS - 1:
            self._guarded("begin", self._attach)
        elif self._steps_done == SKIPPED_STEPS + self._num_steps:
            self.finish()
            return
        elif self._profile is not None:
            if self._steps_done == SKIPPED_STEPS:
                self._plain_step_ms = 1000 * (time.monotonic() - self._clock)
                if torch.cuda.is_available():
                    self._device_start = torch.cuda.memory_allocated()
            self._guarded("go on", self._profile.step)
        self._clock = time.monotonic()

    def finish(self) -> None:
        """Write what was recorded, if that has not been done; collective."""
        if self._finished:
            return
        self._finished = True
        recording = self._guarded("be written", self._write_own)
        recordings = distributed.gather_objects(recording)
        if distributed.is_main_rank():
            self._guarded("be summarized", lambda: self._write_summary(recordings))

    def _attach(self) -> None:
        """Hook into the model, and warm the profiler up during the next step."""
        module = self._engine.module
        for name in MODEL_PARTS:
            part = getattr(module, name, None)
            if isinstance(part, nn.Module):
                self._hooks += _Spans(PREFIX + name).attach(part)
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
            torch.cuda.memory._record_memory_history(max_entries=_HISTORY)
        self._profile = profile(
            activities=activities,
            schedule=_warm_up_then_record,
            profile_memory=True,
        )
        # It has not seen the steps before: the spans in the trace are to have their true numbers.
        self._profile.step_num = SKIPPED_STEPS - 1
        self._profile.start()

    def _detach(self) -> None:
        """Leave model and process as they were; a second call does nothing."""
        for hook in self._hooks:
            hook.remove()
        attached, self._hooks = bool(self._hooks), []
        running, self._profile = self._profile, None
        if attached and torch.cuda.is_available():
            torch.cuda.memory._record_memory_history(enabled=None)
        if running is not None:
            running.stop()

    def _write_own(self) -> Recording | None:
        """Write this rank's trace. Returns None where it has failed before."""
        recorded = self._profile
        if recorded is None:
            return None
        rank = distributed.rank()
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            if torch.cuda.is_available():
                path = self._folder / f"memory_rank{rank}.pickle"
                torch.cuda.memory._dump_snapshot(str(path))  # type: ignore[no-untyped-call]
        finally:
            self._detach()
        recorded.export_chrome_trace(str(self._folder / f"trace_rank{rank}.json.gz"))
        return self._evaluate(recorded)

    def _evaluate(self, recorded: profile) -> Recording:
        results: Any = recorded.profiler and recorded.profiler.kineto_results
        began = results.trace_start_ns()
        memory = [
            ((event.start_ns() - began) / 1e3, event.device_type().name, event.nbytes())
            for event in results.events()
            if event.name() == "[memory]"
        ]
        events = list(recorded.events() or [])  # type: ignore[no-untyped-call]
        on_gpu = torch.cuda.is_available()
        operators = [
            Operator(
                name=row.key,
                calls=row.count,
                host_ms=row.self_cpu_time_total / 1e3,
                device_ms=row.self_device_time_total / 1e3,
                allocated=row.self_device_memory_usage if on_gpu else row.self_cpu_memory_usage,
            )
            for row in recorded.key_averages()
            if not row.is_user_annotation and row.key != "[memory]"
        ]
        return Recording(
            device=torch.cuda.get_device_name() if on_gpu else "cpu",
            first_step=SKIPPED_STEPS + 1,
            plain_step_ms=self._plain_step_ms,
            breakdown=break_down(events, memory),
            operators=operators,
            parameters=_sizes(self._engine.module),
            optimizer_bytes=self._engine.optimizer_bytes(),
            peak_rss=peak_resident(),
            device_start=self._device_start,
        )

    def _write_summary(self, recordings: list[Any]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / "summary.md"
        write_text(path, profile_report.summarize(self._run, recordings))
        terminal.say(f"profile: {path}", quiet=self._quiet)

    def _guarded(self, what: str, action: Callable[[], T]) -> T | None:
        """Do something that may fail without harm; a failure is told once and ends the profile."""
        try:
            return action()
        except Exception as error:
            if not self._failed:
                reason = f"{type(error).__name__}: {error}"
                sys.stderr.write(
                    f"warning: the profile cannot {what} ({reason}); the training goes on.\n"
                )
            self._failed = True
            with suppress(Exception):
                self._detach()
            return None


class _Spans:
    """Record the time inside a module and all below it, entered from wherever.

    A part is not always called as a whole: the backbone reads a prompt through a method, the trend
    is fused by a module of its own. So every module of the part opens the span, and only the
    outermost call counts.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._depth = 0
        self._span: record_function | None = None

    def attach(self, part: nn.Module) -> list[Any]:
        """Hook every module. Returns what takes the hooks off again."""
        hooks = []
        for module in part.modules():
            # First in and last out, so that what ZeRO-3 gathers for a part is the part's time.
            # A backbone that reads a prefix ends its last block by an exception: still a way out.
            hooks.append(module.register_forward_pre_hook(self._enter, prepend=True))
            hooks.append(module.register_forward_hook(self._leave, always_call=True))
        return hooks

    def _enter(self, module: nn.Module, arguments: Any) -> None:
        if self._depth == 0:
            self._span = record_function(self._name)
            self._span.__enter__()  # type: ignore[no-untyped-call]
        self._depth += 1

    def _leave(self, module: nn.Module, arguments: Any, output: Any) -> None:
        self._depth -= 1
        if self._depth == 0 and self._span is not None:
            self._span.__exit__(None, None, None)
            self._span = None


def build_profiler(config: RunConfig, engine: Engine) -> NoProfiler:
    """Make the profiler of a run, or the one that does nothing."""
    if not config.train.profile:
        return NoProfiler()
    folder = config.run_folder / "profile"
    return StepProfiler(
        folder, config.name, engine, config.train.profile_steps, quiet=config.tracking.quiet
    )


def _warm_up_then_record(step: int) -> ProfilerAction:
    """Say what the profiler does in a step, counted from 0."""
    return ProfilerAction.WARMUP if step < SKIPPED_STEPS else ProfilerAction.RECORD


def _sizes(module: nn.Module) -> dict[str, Sizes]:
    """Bytes of each part's parameters; under ZeRO-3 of whole ones."""
    sizes = {}
    for name in MODEL_PARTS:
        part = getattr(module, name, None)
        if not isinstance(part, nn.Module):
            continue
        count = {True: 0, False: 0}
        for parameter in part.parameters():
            count[parameter.requires_grad] += whole_numel(parameter) * parameter.element_size()
        sizes[name] = Sizes(trained=count[True], frozen=count[False])
    return sizes
