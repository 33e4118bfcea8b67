"""launch/doctor/clocks.py: clocks that are off by more than the way there takes."""

import pytest

from launch.doctor import clocks
from launch.doctor.finding import Finding
from tests.helpers.doctors import report, visit


def judged(skew_s: float, round_trip_s: float = 0.001) -> Finding:
    reports = [
        report(0, "a", skew_s=0.0, round_trip_s=0.0),
        report(1, "b", skew_s=skew_s, round_trip_s=round_trip_s),
    ]
    (finding,) = clocks.judge(reports, visit())
    return finding


@pytest.mark.parametrize(("skew_s", "round_trip_s"), [(0.3, 0.001), (-0.9, 0.001), (3.0, 5.0)])
def test_what_may_be_the_way_s_fault_is_well(skew_s: float, round_trip_s: float):
    finding = judged(skew_s, round_trip_s)
    assert finding.status == "ok"
    assert finding.numbers["largest_skew_s"] == skew_s


@pytest.mark.parametrize(("skew_s", "direction"), [(4.5, "ahead of"), (-4.5, "behind")])
def test_a_clock_that_is_off_is_named(skew_s: float, direction: str):
    finding = judged(skew_s)
    assert finding.status == "warn"
    assert finding.found.startswith(f"the clock of rank 1 (b) is 4.5 s {direction} rank 0's")


def test_one_rank_has_nothing_to_compare_with():
    (finding,) = clocks.judge([report(skew_s=0.0, round_trip_s=0.0)], visit())
    assert finding.status == "skip"
