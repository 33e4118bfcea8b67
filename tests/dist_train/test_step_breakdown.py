"""dist_train/step_breakdown.py: every moment of a step has one owner, by hand-made events."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dist_train.step_breakdown import UNACCOUNTED, Label, Span, Timeline, break_down

NODE = "autograd::engine::evaluate_function: "


@dataclass
class Event:
    """What of a ``FunctionEvent`` is read."""

    name: str
    start: float
    end: float
    sequence_nr: int = -1
    thread: int = 1
    fwd_thread: int = 0
    scope: int = 0
    self_device_time_total: float = 0.0
    device_type: str = "DeviceType.CPU"
    time_range: SimpleNamespace = field(init=False)

    def __post_init__(self) -> None:
        self.time_range = SimpleNamespace(start=self.start, end=self.end)


STEP = [
    Event("ProfilerStep*", 0, 1000),
    Event("part/data loading", 0, 100),
    Event("part/forward", 100, 400),
    Event("part/backbone", 150, 250),
    Event("aten::mm", 160, 240, sequence_nr=7, self_device_time_total=50),
    Event("part/head", 250, 300),
    Event("aten::linear", 260, 290, sequence_nr=8),
    Event("aten::addmm", 270, 280, sequence_nr=9),
    Event("aten::add", 310, 320, sequence_nr=10),
    Event("part/backward", 400, 900),
    Event(NODE + "AddBackward0", 410, 420, sequence_nr=10, fwd_thread=1, thread=2),
    Event(NODE + "AddmmBackward0", 430, 530, sequence_nr=9, fwd_thread=1, thread=2),
    Event(NODE + "MmBackward0", 550, 750, sequence_nr=7, fwd_thread=1, thread=2),
    Event("aten::mm", 560, 740, thread=2, self_device_time_total=90),
    Event(NODE + "torch::autograd::AccumulateGrad", 760, 800, thread=2),
    Event("part/head", 1100, 1200),  # after the recorded step
    Event("a kernel", 160, 400, device_type="DeviceType.CUDA"),
]


def test_forward_backward_and_the_rest_add_up_to_the_step():
    found = break_down(STEP, [])
    assert found.steps_ms == [1.0]
    assert found.host_ms == pytest.approx(
        {
            Label("data loading"): 0.1,
            Label("forward"): 0.15,
            Label("backbone"): 0.1,
            Label("head"): 0.05,
            Label("backward"): 0.15,
            Label("forward", backward=True): 0.01,
            Label("head", backward=True): 0.1,
            Label("backbone", backward=True): 0.2,
            Label("gradients"): 0.04,
            UNACCOUNTED: 0.1,
        }
    )
    assert sum(found.host_ms.values()) == pytest.approx(sum(found.steps_ms))


def test_kernels_count_for_the_part_that_launched_them():
    found = break_down(STEP, []).device_ms
    assert found == pytest.approx({Label("backbone"): 0.05, Label("backbone", backward=True): 0.09})


def test_a_number_of_another_thread_is_another_number():
    other = Event("aten::mm", 110, 120, sequence_nr=9, thread=5)
    found = break_down(sorted([*STEP, other], key=lambda event: event.start), [])
    assert found.host_ms[Label("head", backward=True)] == pytest.approx(0.1)


def test_layers_that_run_again_in_the_backward_pass_belong_to_it():
    again = [*STEP, Event("part/backbone", 560, 600, thread=2)]
    found = break_down(sorted(again, key=lambda event: event.start), []).host_ms
    assert found[Label("backbone")] == pytest.approx(0.1)
    assert found[Label("backbone", backward=True)] == pytest.approx(0.2)


def test_memory_peaks_where_most_is_held():
    memory = [(160.0, "CPU", 10), (170.0, "CPU", -4), (560.0, "CPU", 9), (600.0, "CPU", -15)]
    outside = [(-5.0, "CPU", 100), (1150.0, "CPU", 100)]
    steps = break_down(STEP, [*outside, *reversed(memory), (160.0, "CUDA", 3)])
    assert (steps.largest["CPU"].above_start, steps.largest["CPU"].label.name) == (10, "backbone")
    found = steps.allocated
    assert (found["CPU"].above_start, found["CPU"].label) == (15, Label("backbone", backward=True))
    assert (found["CUDA"].above_start, found["CUDA"].label) == (3, Label("backbone"))


def test_a_trace_without_a_step_is_refused():
    with pytest.raises(ValueError, match="the trace holds no step"):
        break_down(STEP[1:], [])


spans = st.lists(
    st.tuples(st.integers(0, 50), st.integers(0, 50), st.sampled_from("abc")).map(
        lambda found: Span(min(found[:2]), max(found[:2]), Label(found[2]))
    ),
    max_size=8,
)


@given(spans)
def test_pieces_never_overlap_and_cover_what_the_spans_cover(found: list[Span]):
    # Spans that overlap without being nested are cut at the end of the one that began first.
    covered = set()
    end = -1.0
    for span in sorted(found, key=lambda span: (span.start, -span.end)):
        end = span.end if span.start >= end else end
        covered |= set(range(int(span.start), int(min(span.end, end))))
    total = sum(Timeline(found).total_ms().values())
    assert total == pytest.approx(len(covered) / 1e3)
