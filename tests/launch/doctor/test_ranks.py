"""launch/doctor/ranks.py: who never came, came twice, or counts otherwise."""

from launch.doctor.meeting import Arrival
from launch.doctor.ranks import judge
from tests.helpers.doctors import arrival


def said(arrivals: list[Arrival], expected: int | None = None) -> list[str]:
    findings = judge(arrivals, expected)
    assert {finding.status for finding in findings} == {"fail"}
    return [finding.found for finding in findings]


def test_those_that_were_announced_are_well():
    (finding,) = judge([arrival(0), arrival(1, "b")], 2)
    assert (finding.status, finding.found) == ("ok", "2 of 2, on 2 nodes")


def test_a_rank_that_never_came_is_named():
    here = [arrival(rank, world_size=5) for rank in (0, 2)]
    here[1] = arrival(2, "b", world_size=5)
    assert said(here) == [
        "ranks 1, 3, 4 of 5 never arrived; those that did: rank 0 (a); rank 2 (b)"
    ]


def test_many_missing_ranks_are_not_all_named():
    (text,) = said([arrival(0, world_size=400)])
    assert "ranks 1, 2, 3" in text
    assert ", ..." in text
    assert len(text) < 200


def test_ranks_that_count_otherwise_are_named():
    first, second = said([arrival(0), arrival(1, "b", world_size=3)])
    assert first == "the ranks disagree on WORLD_SIZE: 2 on rank 0 (a); 3 on rank 1 (b)"
    assert second.startswith("rank 2 of 3 never arrived")


def test_a_number_given_twice_is_named_with_its_processes():
    same = [arrival(0), arrival(1, "b"), arrival(1, "c", seat=3, pid=7)]
    assert said(same) == ["RANK=1 came 2 times: process 101 on b, process 7 on c"]


def test_a_number_beyond_the_last_is_named():
    texts = said([arrival(0), arrival(2, "b")])
    assert "rank 2 (b): the last of 2 ranks is 1" in texts
    assert texts[0].startswith("rank 1 of 2 never arrived")


def test_another_number_than_the_one_that_was_asked_for():
    two = [arrival(0), arrival(1, "b")]
    assert said(two, 3) == ["--world_size 3, but 2 ranks are announced (WORLD_SIZE)"]


def test_a_place_on_a_node_that_is_taken_twice():
    two = [arrival(0), arrival(1)]
    assert said(two) == ["LOCAL_RANK=0 came 2 times on a: they would share a GPU"]
    apart = [arrival(0, task=0), arrival(1, task=1)]  # each sees its own alone
    assert [one.status for one in judge(apart, None)] == ["ok"]
