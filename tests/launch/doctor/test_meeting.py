"""launch/doctor/meeting.py: ranks that meet in a store, and what becomes of those that do not."""

import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from launch.doctor.address import Place, UnreachableError
from launch.doctor.meeting import LostLeaderError, Meeting
from tests.helpers.jobs import free_port


def come(rank: int, port: int, timeout_s: float = 20, world_size: int = 2) -> Meeting:
    place = Place(rank=rank, world_size=world_size, local_rank=rank, address="127.0.0.1", port=port)
    return Meeting(place, f"node{rank}", timeout_s)


def pair(timeout_s: float = 20) -> tuple[Meeting, Meeting]:
    """Rank 0 and rank 1, in one process: each has a connection of its own."""
    port = free_port()
    leader = come(0, port, timeout_s)
    return leader, come(1, port, timeout_s)


def beside(call: Callable[[], object]) -> "threading.Thread":
    thread = threading.Thread(target=call)
    thread.start()
    return thread


def test_ranks_take_seats_and_the_first_rank_0_leads():
    port = free_port()
    meetings = [come(0, port), come(1, port), come(0, port)]
    assert [meeting.arrival.seat for meeting in meetings] == [1, 2, 3]
    assert [meeting.leads for meeting in meetings] == [True, False, False]
    arrivals = meetings[0].wait_for_ranks()
    assert [(one.rank, one.node) for one in arrivals] == [
        (0, "node0"), (1, "node1"), (0, "node0"),
    ]  # fmt: skip


def test_the_wait_for_a_rank_that_never_comes_ends():
    leader = come(0, free_port(), timeout_s=1.5)
    began = time.monotonic()
    assert [one.rank for one in leader.wait_for_ranks()] == [0]
    assert 1.5 <= time.monotonic() - began < 30


def test_what_is_posted_is_collected_by_seat():
    leader, other = pair()
    leader.post("alone", {"a": 1})
    other.post("alone", {"a": 2})
    posted, lost = leader.collect("alone", leader.arrivals())
    assert (posted, lost) == ({1: {"a": 1}, 2: {"a": 2}}, {})


def test_who_shows_no_sign_of_life_is_lost_with_what_it_had_begun(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("launch.doctor.meeting._SLACK_S", 0.2)
    leader, other = pair(timeout_s=1.5)
    leader.post("alone", {})
    other.set_progress("disk")
    posted, lost = leader.collect("alone", leader.arrivals())
    assert (list(posted), lost) == ([1], {2: "disk"})


def test_who_gets_on_is_waited_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("launch.doctor.meeting._SLACK_S", 0.2)
    leader, other = pair(timeout_s=2.0)
    leader.post("alone", {})

    def work() -> None:
        for number in range(12):  # longer than that in all
            other.set_progress(f"part {number}")
            time.sleep(0.25)
        other.post("alone", {"done": True})

    thread = beside(work)
    posted, lost = leader.collect("alone", leader.arrivals())
    thread.join()
    assert (posted[2], lost) == ({"done": True}, {})


def test_what_the_leader_publishes_is_heard():
    leader, other = pair()
    with ThreadPoolExecutor() as pool:
        heard = pool.submit(other.hear, "verdict")
        time.sleep(0.3)
        leader.publish("verdict", "1")
        assert heard.result(20) == "1"


def test_a_leader_that_hangs_or_never_came_is_lost(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("launch.doctor.meeting._SLACK_S", 0.1)
    _, other = pair(timeout_s=1.5)
    with pytest.raises(LostLeaderError, match="rank 0 has shown no sign of life for 1.5 s"):
        other.hear("verdict")
    other.store.delete_key("doctor/0/leader")
    with pytest.raises(LostLeaderError, match="no rank 0 has come within 1.5 s"):
        other.hear("verdict")


def test_questions_are_answered():
    leader, other = pair()
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(other.ask, "time")
        leader.answer("time", lambda: "noon")
        assert answer.result(20) == "noon"


def test_all_wait_for_the_last():
    leader, other = pair()
    came: list[str] = []

    def come_late() -> None:
        time.sleep(0.4)
        came.append("late")
        other.await_all("speed", 2)

    thread = beside(come_late)
    leader.await_all("speed", 2)
    assert came == ["late"]
    thread.join()


def test_the_leader_leaves_last(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("launch.doctor.meeting._FAREWELL_S", 60.0)
    leader, other = pair()

    def leave() -> None:
        time.sleep(0.4)
        other.leave(0)

    began = time.monotonic()
    thread = beside(leave)
    leader.leave(1)
    assert 0.4 <= time.monotonic() - began < 30
    thread.join()


def test_a_port_of_another_program_is_refused_and_not_waited_for():
    # It takes connections and says nothing; torch alone would wait for ever.
    with socket.create_server(("127.0.0.1", 0)) as server:
        began = time.monotonic()
        port = server.getsockname()[1]
        for rank in (0, 1):
            with pytest.raises(UnreachableError, match="something else than a rank 0 answers"):
                come(rank, port, timeout_s=1)
        assert time.monotonic() - began < 60


def test_a_rank_0_whose_address_is_another_machine_s_is_refused():
    place = Place(rank=0, world_size=2, local_rank=0, address="192.0.2.1", port=free_port())
    began = time.monotonic()
    with pytest.raises(UnreachableError, match="does not reach itself"):
        Meeting(place, "a", 1)
    assert time.monotonic() - began < 60
