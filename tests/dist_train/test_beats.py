"""dist_train/beats.py: who reads what, and that the first alarm stays."""

import pytest

from dist_train.beats import Board
from tests.helpers.beats import DictStore, beat


def test_a_beat_arrives_as_it_was_sent():
    sent = beat(3, step=13, said="a\nb", exchanges=(4, 5))
    assert type(sent).from_text(sent.to_text()) == sent


@pytest.mark.parametrize(("rank", "expected"), [(0, [0, 1, 2, 3]), (1, [0, 2]), (3, [0])])
def test_rank_0_reads_all_and_the_others_two(rank: int, expected: list[int]):
    store = DictStore()
    boards = [Board(store, number, 4) for number in range(4)]
    for number, board in enumerate(boards):
        board.publish(beat(number + 10))
    store.asked.clear()
    alarm, beats = boards[rank].read()
    assert alarm == ""
    assert {number: found.number for number, found in beats.items()} == {
        number: number + 10 for number in expected
    }
    assert len(store.asked) == 1, "one request"


def test_the_first_alarm_stays_and_all_read_it():
    store = DictStore()
    boards = [Board(store, number, 3) for number in range(3)]
    for board in boards:
        board.publish(beat(1))
    boards[1].raise_alarm("rank 2 died")
    boards[0].raise_alarm("another")
    assert [board.read()[0] for board in boards] == ["rank 2 died"] * 3
