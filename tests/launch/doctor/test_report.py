"""launch/doctor/report.py: ranks are named by node."""

from launch.doctor.report import group_by, name_all
from tests.helpers.doctors import report


def test_ranks_are_named_by_node():
    reports = [report(2, "b"), report(1, "a"), report(0, "a")]
    assert name_all(reports) == "rank 2 (b); ranks 0, 1 (a)"
    assert report(3, "c").who == "rank 3 (c)"


def test_the_group_of_rank_0_comes_first():
    reports = [report(1, v="x"), report(0, v="y"), report(2, v="x")]
    groups = group_by(reports, lambda one: str(one.facts["v"]))
    assert {key: [one.rank for one in same] for key, same in groups.items()} == {
        "y": [0],
        "x": [1, 2],
    }
    assert list(groups) == ["y", "x"]
