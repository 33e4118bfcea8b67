"""memory_index/timeline.py: hidden rows against a slow comparison of times, row by row."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from memory_index.timeline import FAR, LONG_AGO, Timeline

HOUR = 4
"""Of quarters, the unit of time here."""


def of(stamps: list[int], following: int | None = None) -> Timeline:
    """A timeline of one series; its last row lasts as long as the one before it."""
    last = stamps[-1] + (stamps[-1] - stamps[-2] if len(stamps) > 1 else 1)
    return Timeline(
        [np.array(stamps)], [last if following is None else following], np.zeros(1, int),
        np.zeros(1, int),
    )  # fmt: skip


def hidden(
    query: Timeline, entries: Timeline, start: int, span: int, *, past_only: bool
) -> set[int]:
    """First rows of the windows of ``entries`` that one window of ``query`` must not see."""
    series, starts = np.array([0]), np.array([start])
    rows = entries.hidden_rows(*query.lasting(series, starts, span), span, past_only=past_only)
    (first,), (end,) = rows
    return set(range(first, end)) & set(range(len(entries) - span + 1))


def by_loop(query: list[int], entries: list[int], start: int, span: int, past_only: bool) -> set:
    """The rule for stamps in order: [first stamp, stamp after the last row) must not overlap."""

    def lasts(stamps: list[int], row: int) -> tuple[int, int]:
        longer = [*stamps, stamps[-1] + stamps[-1] - stamps[-2]]
        return longer[row], longer[row + span]

    begin, end = lasts(query, start)
    found = set()
    for row in range(len(entries) - span + 1):
        its_begin, its_end = lasts(entries, row)
        if its_end > begin and (past_only or its_begin < end):
            found.add(row)
    return found


STEPS = st.lists(st.integers(1, 6), min_size=6, max_size=24)


@settings(deadline=None, max_examples=300)
@given(
    query_steps=STEPS, entry_steps=STEPS, query_first=st.integers(-30, 30),
    span=st.integers(1, 5), choice=st.integers(0, 30), past_only=st.booleans(),
)  # fmt: skip
def test_hidden_is_what_overlaps_in_time_whatever_the_steps(
    query_steps: list[int], entry_steps: list[int], query_first: int, span: int, choice: int,
    past_only: bool,
):  # fmt: skip
    query = (query_first + np.cumsum([0, *query_steps])).tolist()
    entries = np.cumsum([0, *entry_steps]).tolist()
    start = choice % (len(query) - span + 1)
    got = hidden(of(query), of(entries), start, span, past_only=past_only)
    assert got == by_loop(query, entries, start, span, past_only)


@settings(deadline=None, max_examples=300)
@given(
    query=st.lists(st.integers(0, 25), min_size=6, max_size=16),
    entries=st.lists(st.integers(0, 25), min_size=6, max_size=16),
    span=st.integers(1, 5), choice=st.integers(0, 30), past_only=st.booleans(),
)  # fmt: skip
def test_stamps_in_no_order_hide_all_that_shares_a_step(
    query: list[int], entries: list[int], span: int, choice: int, past_only: bool
):
    assume(len(set(query)) > 1)
    assume(len(set(entries)) > 1)
    start = choice % (len(query) - span + 1)
    got = hidden(of(query), of(entries), start, span, past_only=past_only)
    own = query[start : start + span]
    for row in range(len(entries) - span + 1):
        its = entries[row : row + span]
        # A row lasts one unit of time at least.
        if set(own) & set(its) or (past_only and max(its) >= min(own)):
            assert row in got


def test_quarters_of_an_hour_and_hours():
    hours, quarters = of(list(range(0, 40 * HOUR, HOUR))), of(list(range(0, 160)))
    # Hours 10 to 13: quarters 40 to 55. Windows of four quarters that touch them begin at 37.
    assert hidden(hours, quarters, 10, 4, past_only=False) == set(range(37, 56))
    assert hidden(hours, quarters, 10, 4, past_only=True) == set(range(37, 157))
    # Quarters 40 to 43 are hour 10; windows of four hours that touch it begin at hour 7.
    assert hidden(quarters, hours, 40, 4, past_only=False) == {7, 8, 9, 10}
    assert hidden(quarters, hours, 40, 4, past_only=True) == set(range(7, 37))


def test_windows_beyond_the_end_go_on_by_steps():
    line = Timeline(
        [np.array([0, 4, 8, 12, 20])], [24], np.zeros(1, dtype=int), np.zeros(1, dtype=int)
    )
    series = np.zeros(4, dtype=int)
    begin, end = line.lasting(series, np.array([3, 4, 5, 7]), 2)
    assert begin.tolist() == [12, 20, 24, 32]  # as soon as a row can come
    assert end.tolist() == [24, 32, 40, 56]  # as late as one can
    begin, end = line.lasting(series[:2], np.array([-1, FAR]), 2)
    assert begin.tolist() == [LONG_AGO, FAR]
    assert end.tolist() == [4, FAR]


def test_one_row_is_a_clock_too():
    line = of([5])
    assert len(line) == 1
    series, starts = np.zeros(3, dtype=int), np.array([-1, 0, 1])
    begin, end = line.lasting(series, starts, 1)
    assert (begin.tolist(), end.tolist()) == ([LONG_AGO, 5, 6], [6, 6, 7])
    assert hidden(line, line, 0, 1, past_only=False) == {0}


def test_series_one_after_the_other_lie_in_stretches_of_their_own():
    line = Timeline(
        [np.array([0, 1, 3]), np.array([100, 101, 102, 103])], [5, 104], np.array([1, 0, 1]),
        np.array([3, 0, 3]),
    )  # fmt: skip
    series, starts = np.array([1, 1, 0, 2]), np.array([2, 3, 0, 3])
    begin, end = line.lasting(series, starts, 2)
    # A window that leaves its stretch does not come into the next one.
    assert begin.tolist() == [3, 5, 100, 103]
    assert end.tolist() == [7, 9, 102, 105]
    rows = line.hidden_rows(np.array([3, 90]), np.array([101, 101]), 2, past_only=False)
    assert [part.tolist() for part in rows] == [[1, 2], [4, 4]]


@pytest.mark.parametrize("past_only", [False, True])
def test_a_rule_without_length_hides_nothing(past_only: bool):
    line = of([0, 1, 2, 3])
    assert hidden(line, line, 1, 0, past_only=past_only) == set()


def test_fewer_rows_than_a_window_hold_nothing_to_hide():
    short, long = of([0, 1, 2]), of(list(range(20)))
    assert hidden(long, short, 0, 5, past_only=False) == set()


def test_stamps_in_order_are_not_copied():
    stamps = np.arange(10)
    line = Timeline([stamps], [10], np.zeros(1, dtype=int), np.zeros(1, dtype=int))
    assert np.shares_memory(line._begins, stamps)
    assert np.shares_memory(line._ends, stamps)
