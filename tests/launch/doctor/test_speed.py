"""launch/doctor/speed.py: the slowest rank is named."""

from types import SimpleNamespace
from typing import Any, cast

from launch.doctor import speed
from launch.doctor.finding import Finding
from tests.helpers.doctors import arrival, report, visit


def judged(*seconds: float) -> Finding:
    facts = {"width": 1024, "device": "cpu"}
    reports = [report(r, "ab"[r % 2], seconds=s, **facts) for r, s in enumerate(seconds)]
    (finding,) = speed.judge(reports, visit())
    return finding


def test_a_slow_rank_is_named_with_its_node():
    finding = judged(0.010, 0.031, 0.011)
    assert finding.status == "warn"
    assert finding.found.startswith("slowest is rank 1 (b): a 1024 x 1024 product in 31.0 ms")
    assert "median of the others takes 10.5 ms" in finding.found
    assert finding.numbers == {"rank_0_ms": 10.0, "rank_1_ms": 31.0, "rank_2_ms": 11.0}


def test_equal_ranks_are_well_and_one_rank_is_only_timed():
    assert judged(0.010, 0.014).status == "ok"
    assert judged(0.010).found == "one rank: a 1024 x 1024 product in 10.0 ms, 0.215 TFLOP/s"


def test_a_product_takes_time_here():
    waited: list[int] = []
    meeting = SimpleNamespace(await_all=lambda what, count: waited.append(count))
    here = visit()
    given = type(here)(
        config=here.config, options=here.options, meeting=cast(Any, meeting), ranks=[arrival()]
    )
    assert speed.examine(given)["seconds"] > 0
    assert waited == [1]
