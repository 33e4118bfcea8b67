"""dist_train/profile_report.py: the tables add up, and what stands out is said."""

from dataclasses import replace

import pytest

from dist_train.profile_report import Operator, Recording, Sizes, findings, summarize
from dist_train.step_breakdown import UNACCOUNTED, Breakdown, Label, Peak

RECORDING = Recording(
    device="cpu",
    first_step=3,
    plain_step_ms=95.0,
    breakdown=Breakdown(
        steps_ms=[90.0, 110.0],
        host_ms={
            Label("backbone"): 50.0, Label("backbone", backward=True): 70.0, Label("head"): 20.0,
            Label("data loading"): 24.0, Label("optimizer"): 20.0, UNACCOUNTED: 16.0,
        },
        device_ms={},
        allocated={"CPU": Peak(above_start=3 * 2**20, label=Label("head", backward=True))},
        largest={"CPU": Peak(above_start=2**20, label=Label("head"))},
    ),
    operators=[
        Operator(name="aten::mm", calls=8, host_ms=60.0, device_ms=0.0, allocated=2**22),
        Operator(name="aten::add", calls=2, host_ms=80.0, device_ms=0.0, allocated=-5),
    ],
    parameters={"backbone": Sizes(trained=0, frozen=2**21), "head": Sizes(trained=2**20, frozen=0)},
    optimizer_bytes=3 * 2**20,
    peak_rss=2**29,
    device_start=0,
)  # fmt: skip


def test_a_step_is_divided_and_adds_up():
    lines = summarize("demo", [RECORDING]).splitlines()
    assert "| backbone | 25.00 | 35.00 | 60.0 % |" in lines
    assert "| data loading | 12.00 |  | 12.0 % |" in lines
    assert "| not accounted for | 8.00 |  | 8.0 % |" in lines
    assert "| sum | 65.00 | 35.00 | 100.0 % |" in lines


def test_the_opening_says_which_steps_and_what_recording_costs():
    text = summarize("demo", [RECORDING])
    assert text.startswith("# Profile of demo\n")
    assert "Rank 0 of 1 on cpu, steps 3 to 4 (ProfilerStep#2 to #3 of the trace)" in text
    assert "took 100.0 ms (90.0 to 110.0); the step before them, not recorded, 95.0 ms" in text


def test_what_stands_out_is_said():
    lines = findings([RECORDING])
    assert lines[0] == (
        "The largest part is backbone: 60.0 % of a step (25.0 % forward, 35.0 % backward)."
    )
    assert lines[1].startswith("12.0 % of a step is data loading: more data.num_workers")
    assert not any("retrieval wait" in line or "not accounted" in line for line in lines)
    assert lines[-1].startswith("CPU memory peaks in head (backward), 3.0 MiB above")


def test_sizes_are_in_mib():
    lines = summarize("demo", [RECORDING]).splitlines()
    assert "| trained parameters | 1.0 |" in lines
    assert "| frozen parameters | 2.0 |" in lines
    assert "| optimizer: averages and float32 copies, of this rank | 3.0 |" in lines
    assert "| backbone | 0.0 | 2.0 |" in lines
    assert "| CPU memory, largest single allocation (in head) | 1.0 |" in lines
    assert "| largest resident memory of the process so far | 512.0 |" in lines


def test_operators_are_ordered_by_time_and_by_memory():
    lines = summarize("demo", [RECORDING]).splitlines()
    assert lines.index("| `aten::add` | 1 | 40.00 |") < lines.index("| `aten::mm` | 4 | 30.00 |")
    assert lines.index("| `aten::mm` | 2.0 |") < lines.index("| `aten::add` | -0.0 |")


def test_on_a_gpu_its_time_has_a_column_and_orders_the_operators():
    device = {Label("backbone"): 60.0, Label("backbone", backward=True): 80.0}
    operators = [replace(one, device_ms=one.calls * 10.0) for one in RECORDING.operators]
    on_gpu = replace(
        RECORDING, breakdown=replace(RECORDING.breakdown, device_ms=device),
        operators=operators, device_start=2**20,
    )  # fmt: skip
    lines = summarize("demo", [on_gpu]).splitlines()
    assert "| backbone | 25.00 | 35.00 | 60.0 % | 70.00 |" in lines
    assert "* Kernels keep the GPU busy for 70.0 % of a step." in lines
    assert "| GPU memory that torch held when the recording began | 1.0 |" in lines
    first = lines.index("| `aten::mm` | 4 | 30.00 | 40.00 |")
    assert first < lines.index("| `aten::add` | 1 | 40.00 | 10.00 |")


def test_ranks_stand_beside_each_other_also_one_that_failed():
    text = summarize("demo", [None, RECORDING])
    assert "Rank 1 of 2 on cpu" in text
    assert "| 0 | not recorded | | | | | |" in text
    assert "| 1 | 100.0 | 70.0 % | 10.0 % | 0.0 % | 12.0 % | 8.0 % |" in text
    assert "Nothing was recorded on rank 0" in text
    assert "## Ranks" not in summarize("demo", [RECORDING])


def test_no_recording_makes_no_summary():
    with pytest.raises(ValueError, match="no rank recorded a step"):
        summarize("demo", [None, None])
