"""What a recorded step spent its time on: every moment belongs to one part.

The profiler's spans are nested. Each moment counts for the innermost span that is one of ours, so
the parts of a step add up to the step. A backward node has no span of its own: it carries the
sequence number of the forward operator that made it, and counts for the part that ran it.
"""

import bisect
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

PREFIX = "part/"
"""Begins the name of every span that is ours."""

FORWARD, BACKWARD = "forward", "backward"
"""Phases of a step: what of them belongs to no layer of the model keeps their name."""

GRADIENTS = "gradients"
"""Adding gradients up, and handing them to the other ranks."""

_STEP = "ProfilerStep*"  # FunctionEvent writes the number of the step as a star
_NODE = "autograd::engine::evaluate_function: "
_ACCUMULATES = "AccumulateGrad"
_ROUNDING_US = 1e-3  # times are kept in ns, and compared as float us


@dataclass(frozen=True, order=True)
class Label:
    """Whose time it is."""

    name: str
    """Part of the model, phase of the step, or empty: inside a step and nobody's."""

    backward: bool = False
    """Whether it is the gradient of the part."""


UNACCOUNTED = Label("")


@dataclass(frozen=True)
class Span:
    """A stretch of time with an owner, in microseconds."""

    start: float
    end: float
    label: Label


@dataclass(frozen=True, kw_only=True)
class Breakdown:
    """Time of the recorded steps."""

    steps_ms: list[float]
    """Duration of each."""

    host_ms: dict[Label, float]
    """Of all steps together, by the clock of the thread that trains; adds up to ``steps_ms``."""

    device_ms: dict[Label, float]
    """Of all steps together: kernels on the GPU by who launched them; empty on a CPU."""

    allocated: dict[str, "Peak"]
    """By kind of device (CPU, CUDA): where torch held most memory; only what was seen."""

    largest: dict[str, "Peak"]
    """By kind of device: the largest single allocation, as if it were alone."""


@dataclass(frozen=True, kw_only=True)
class Peak:
    """A moment of the recorded steps, and the memory it is remembered for."""

    above_start: int
    """Bytes that torch held more than when the recording began."""

    label: Label
    """Who ran then."""


def break_down(events: Sequence[Any], memory: Iterable[tuple[float, str, int]]) -> Breakdown:
    """Divide recorded steps into parts.

    Args:
        events: ``FunctionEvent`` of ``torch.profiler.profile.events()``.
        memory: Each allocation: its time on the same clock in microseconds, kind of device, and
            bytes; negative when freed.

    Raises:
        ValueError: There is no step among the events.
    """
    events = [event for event in events if str(event.device_type).endswith("CPU")]
    steps = [_span(event, UNACCOUNTED) for event in events if event.name == _STEP]
    if not steps:
        raise ValueError("the trace holds no step.")
    steps.sort(key=lambda span: span.start)
    inside = [event for event in events if _is_inside(event, steps)]
    ours = [event for event in inside if event.name.startswith(PREFIX)]
    named = [_span(event, Label(event.name.removeprefix(PREFIX))) for event in ours]
    spans = [*steps, *_mark_backward(named)]
    spans += _backward_nodes(inside, Timeline(spans))
    timeline = Timeline(spans)
    device: defaultdict[Label, float] = defaultdict(float)
    for event in inside:
        if event.self_device_time_total and not event.name.startswith((PREFIX, _STEP)):
            device[timeline.label_at(event.time_range.start)] += event.self_device_time_total / 1e3
    seen = [one for one in sorted(memory) if steps[0].start <= one[0] <= steps[-1].end]
    return Breakdown(
        steps_ms=[(span.end - span.start) / 1e3 for span in steps],
        host_ms=timeline.total_ms(),
        device_ms=dict(device),
        allocated=_peaks(seen, timeline),
        largest=_peaks([one for one in seen if one[2] > 0], timeline, adds_up=False),
    )


class Timeline:
    """Nested spans cut into pieces that do not overlap, each its innermost span's."""

    def __init__(self, spans: Iterable[Span]) -> None:
        self._pieces: list[Span] = []
        self._open: list[Span] = []
        self._now = -math.inf
        for span in sorted(spans, key=lambda span: (span.start, -span.end)):
            self._advance(span.start)
            end = min(span.end, self._open[-1].end) if self._open else span.end
            self._open.append(Span(span.start, end, span.label))
        self._advance(math.inf)
        self._starts = [piece.start for piece in self._pieces]

    def label_at(self, time: float) -> Label:
        """Say whose a moment is; :data:`UNACCOUNTED` outside all spans."""
        number = bisect.bisect_right(self._starts, time + _ROUNDING_US) - 1
        if number < 0 or self._pieces[number].end < time:
            return UNACCOUNTED
        return self._pieces[number].label

    def total_ms(self) -> dict[Label, float]:
        """Add the pieces up."""
        total: defaultdict[Label, float] = defaultdict(float)
        for piece in self._pieces:
            total[piece.label] += (piece.end - piece.start) / 1e3
        return dict(total)

    def _advance(self, time: float) -> None:
        while self._open and self._open[-1].end <= time:
            last = self._open.pop()
            self._add(last.end, last.label)
        if self._open:
            self._add(time, self._open[-1].label)
        self._now = max(self._now, time)

    def _add(self, until: float, label: Label) -> None:
        if until > self._now:
            self._pieces.append(Span(self._now, until, label))
            self._now = until


def _mark_backward(spans: list[Span]) -> list[Span]:
    """Layers that run again inside the backward pass (activation checkpointing) belong to it."""
    timeline = Timeline(span for span in spans if span.label.name in (FORWARD, BACKWARD))
    return [
        Span(span.start, span.end, Label(span.label.name, backward=True))
        if span.label.name != BACKWARD and timeline.label_at(span.start).name == BACKWARD
        else span
        for span in spans
    ]


def _backward_nodes(events: list[Any], forward: Timeline) -> list[Span]:
    makers: dict[tuple[int, int], Any] = {}
    for event in events:  # in order of start: the last to see a number is the one that took it
        if event.sequence_nr >= 0 and not event.name.startswith(_NODE) and event.scope != 1:
            makers[event.thread, event.sequence_nr] = event
    spans = []
    for event in events:
        if not event.name.startswith(_NODE):
            continue
        maker = makers.get((event.fwd_thread, event.sequence_nr))
        if _ACCUMULATES in event.name:
            label = Label(GRADIENTS)
        else:
            name = "" if maker is None else forward.label_at(maker.time_range.start).name
            label = Label(name or BACKWARD, backward=name not in ("", BACKWARD))
        spans.append(_span(event, label))
    return spans


def _peaks(
    memory: list[tuple[float, str, int]], timeline: Timeline, *, adds_up: bool = True
) -> dict[str, Peak]:
    held: defaultdict[str, int] = defaultdict(int)
    peaks: dict[str, Peak] = {}
    for time, kind, num_bytes in memory:
        held[kind] = num_bytes + (held[kind] if adds_up else 0)
        if kind not in peaks or held[kind] > peaks[kind].above_start:
            peaks[kind] = Peak(above_start=held[kind], label=timeline.label_at(time))
    return peaks


def _is_inside(event: Any, steps: list[Span]) -> bool:
    return any(step.start <= event.time_range.start < step.end for step in steps)


def _span(event: Any, label: Label) -> Span:
    return Span(event.time_range.start, event.time_range.end, label)
