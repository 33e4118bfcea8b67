"""memory_index/time_major.py: ids against tables of windows, ranges against sets of hours."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from memory_index.exclusion import Exclusion
from memory_index.time_major import TimeMajorIds

# (rows, variates, offset on the clock) of each series.
SERIES = st.lists(
    st.tuples(st.integers(1, 12), st.integers(1, 3), st.integers(0, 9)), min_size=1, max_size=4
)


def layout(series: list[tuple[int, int, int]], shared: bool) -> TimeMajorIds:
    shapes = [(rows, variates) for rows, variates, _ in series]
    return TimeMajorIds(shapes, [offset for *_, offset in series] if shared else None)


def every_place(series: list[tuple[int, int, int]], shared: bool) -> list[tuple[int, ...]]:
    """(clock, time on it, series, row, variate) of every value, ordered as ids should be."""
    places = [
        (0 if shared else index, row + (offset if shared else 0), index, row, variate)
        for index, (rows, variates, offset) in enumerate(series)
        for row in range(rows)
        for variate in range(variates)
    ]
    return sorted(places)


@settings(deadline=None)
@given(series=SERIES, shared=st.booleans())
def test_ids_ascend_with_time_then_series_then_variate(
    series: list[tuple[int, int, int]], shared: bool
):
    places = every_place(series, shared)
    names = layout(series, shared)
    _, _, index, rows, variates = torch.tensor(places).T
    ids = names.ids(index, rows, variates)
    assert (ids.diff() > 0).all()
    assert int(ids.min()) >= 0
    assert int(ids.max()) < names.end


@settings(deadline=None)
@given(series=SERIES, shared=st.booleans())
def test_every_id_leads_back_to_its_place(series: list[tuple[int, int, int]], shared: bool):
    names = layout(series, shared)
    _, _, *place = torch.tensor(every_place(series, shared)).T
    for got, expected in zip(names.locate(names.ids(*place)), place, strict=True):
        assert got.tolist() == expected.tolist()


def test_no_id_has_no_place():
    names = TimeMajorIds([(4, 2), (5, 1)])
    ids = torch.tensor([[8, -1], [-1, 3]])
    places = [part.tolist() for part in names.locate(ids)]
    assert places == [[[1, -1], [-1, 0]], [[0, -1], [-1, 1]], [[0, -1], [-1, 1]]]


@settings(deadline=None)
@given(
    series=SERIES,
    shared=st.booleans(),
    past_only=st.booleans(),
    seq_len=st.integers(1, 4),
    pred_len=st.integers(1, 3),
)
def test_hidden_is_what_the_rule_says_about_times_on_one_clock(
    series: list[tuple[int, int, int]], shared: bool, past_only: bool, seq_len: int, pred_len: int
):
    span = seq_len + pred_len
    names, places = layout(series, shared), every_place(series, shared)
    rule = Exclusion(seq_len=seq_len, pred_len=pred_len, past_only=past_only)
    _, _, index, rows, variates = torch.tensor(places).T
    ids = names.ids(index, rows, variates).tolist()

    hidden = names.hidden(index, rows, rule).tolist()

    for (clock, time, *_), (first, end) in zip(places, hidden, strict=True):
        own = set(range(time, time + span))
        for (other_clock, other_time, *_), name in zip(places, ids, strict=True):
            covered = set(range(other_time, other_time + span))
            overlaps = bool(own & covered)
            later = past_only and max(covered) >= time + seq_len
            assert (first <= name < end) == (clock == other_clock and (overlaps or later))


def test_a_query_beyond_the_end_of_its_series_hides_nothing_of_another_clock():
    names = TimeMajorIds([(10, 2), (10, 2)])
    for past_only in (False, True):
        rule = Exclusion(seq_len=3, pred_len=2, past_only=past_only)
        starts = torch.tensor([8, 9, 30])
        hidden = names.hidden(torch.zeros(3, dtype=torch.int64), starts, rule)
        assert hidden[:, 1].tolist() == [20, 20, 20]
        assert hidden[:, 0].tolist() == [8, 10, 20]


def test_windows_lie_at_the_time_of_their_clock():
    series, starts = torch.tensor([0, 1, 1]), torch.tensor([5, 0, 5])
    apart, together = TimeMajorIds([(10, 1), (7, 3)]), TimeMajorIds([(10, 1), (7, 3)], [0, 3])
    assert [part.tolist() for part in apart.on_clock(series, starts)] == [[0, 1, 1], [5, 0, 5]]
    assert [part.tolist() for part in together.on_clock(series, starts)] == [[0, 0, 0], [5, 3, 8]]


def test_shapes_of_series_rows_and_variates_broadcast():
    names = TimeMajorIds([(4, 3)])
    ids = names.ids(torch.tensor(0), torch.arange(4)[:, None], torch.arange(3))
    assert ids.tolist() == torch.arange(12).reshape(4, 3).tolist()


def test_refuses_another_number_of_offsets_than_series():
    with pytest.raises(ValueError, match="the bank got 2 series and 1 clock offsets: pass one"):
        TimeMajorIds([(4, 1), (4, 1)], [0])
