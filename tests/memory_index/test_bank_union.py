"""memory_index/bank_union.py: every id names its window; hidden is what shares time."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from memory_index.bank import MemoryBank
from memory_index.bank_union import BankUnion
from memory_index.config import BankConfig
from memory_index.exclusion import Exclusion
from memory_index.timeline import Timeline

L, H = 3, 2
SPAN = L + H
ALL = torch.ones(3, 3, dtype=torch.bool)
# (rows of each series, its first row on the source's clock), stamps of that clock.
SOURCES = [
    ([(20, 0), (14, 6)], np.arange(0, 80, 4)),
    ([(30, 0)], np.arange(25, 55)),
    ([(12, 0), (12, 0)], np.array([3, 10, 10, 12, 13, 20, 28, 29, 30, 31, 60, 61])),
]


def parts_of(stride: int = 1) -> tuple[list[MemoryBank], list[Timeline]]:
    rng = np.random.default_rng(0)
    banks, timelines = [], []
    for series, stamps in SOURCES:
        arrays = [rng.normal(size=(rows, 1)).astype(np.float32) for rows, _ in series]
        offsets = [first for _, first in series]
        ranges = [(0, rows) for rows, _ in series]
        banks.append(MemoryBank(arrays, ranges, L, H, BankConfig(bank_stride=stride), offsets))
        zeros = np.zeros(len(series), dtype=int)
        timelines.append(Timeline([stamps], [int(stamps[-1]) + 4], zeros, np.array(offsets)))
    return banks, timelines


def union_of(sees: torch.Tensor = ALL, stride: int = 1) -> BankUnion:
    return BankUnion(*parts_of(stride), sees)


def places() -> list[tuple[int, int, int]]:
    """(source, series of all, start) of every window there is."""
    found, before = [], 0
    for source, (series, _) in enumerate(SOURCES):
        for number, (rows, _) in enumerate(series):
            found += [(source, before + number, start) for start in range(rows - SPAN + 1)]
        before += len(series)
    return found


def test_every_entry_has_an_id_of_its_own_that_leads_back_to_it():
    union, (banks, _) = union_of(), parts_of()
    assert len(union) == len(union.ids) == len(places()) == union.num_candidates
    assert (union.ids.diff() > 0).all()
    series, starts, columns = union.places(union.ids)
    sources = union.sources(union.ids)
    told = zip(sources.tolist(), series.tolist(), starts.tolist(), strict=True)
    assert sorted(told) == sorted(places())
    assert not columns.any()
    assert torch.equal(union.series(union.ids), series)
    assert torch.equal(union.starts(union.ids), starts)
    for number, bank in enumerate(banks):
        own = union.ids[sources == number]
        assert torch.equal(own - union.first_ids[number], bank.ids)
        assert torch.equal(union.windows(own), bank.windows(bank.ids))
        for anchored in (False, True):
            assert torch.equal(
                union.futures(own, anchored=anchored), bank.futures(bank.ids, anchored=anchored)
            )


def test_ids_may_come_in_any_shape_and_some_be_none():
    union = union_of()
    ids = torch.stack([union.ids[[40, 0, 7]], torch.tensor([-1, int(union.ids[-1]), -1])])
    values = union.windows(ids)
    assert values.shape == (2, 3, L)
    assert union.futures(ids).shape == (2, 3, H)
    assert not values[1, [0, 2]].any()
    assert torch.equal(values[0, 1], union.windows(union.ids[:1])[0])
    assert torch.equal(values[1, 1], union.windows(union.ids[-1:])[0])
    for part in (*union.places(ids), union.sources(ids)):
        assert (part[1, [0, 2]] == -1).all()
        assert (part[0] >= 0).all()
    assert union.windows(torch.full((0,), -1)).shape == (0, L)


def test_refuses_an_id_of_another_bank():
    union = union_of()
    with pytest.raises(ValueError, match=r"id \d+ is beyond the 94 values of all sources"):
        union.windows(union.first_ids[-1:])


def lasts(source: int, series: int, start: int) -> tuple[int, int]:
    """When a window begins and ends, by the table above."""
    own, stamps = SOURCES[source]
    first = own[series - sum(len(before) for before, _ in SOURCES[:source])][1] + start
    longer = [*stamps.tolist(), int(stamps[-1]) + 4]
    end = longer[first + SPAN]
    last = longer[first + SPAN - 1]
    return longer[first], max(end, last + 1)


@pytest.mark.parametrize("past_only", [False, True])
@pytest.mark.parametrize("scope", ["source", "across", "both"])
def test_hidden_is_what_shares_time_and_what_is_out_of_scope(scope: str, past_only: bool):
    own = torch.eye(3, dtype=torch.bool)
    sees = {"source": own, "across": ~own, "both": ALL}[scope]
    union, every = union_of(sees), places()
    rule = Exclusion(seq_len=L, pred_len=H, past_only=past_only)
    _, series, starts = torch.tensor(every).T
    hidden_QS2 = union.hidden(series, starts, rule)
    assert hidden_QS2.shape == (len(every), 3, 2)
    names = {place: number for number, place in zip(union.ids.tolist(), _told(union), strict=True)}
    for query, ranges in zip(every, hidden_QS2.tolist(), strict=True):
        begin, end = lasts(*query)
        for entry in every:
            its_begin, its_end = lasts(*entry)
            shares = its_end > begin and (past_only or its_begin < end)
            expected = shares or not sees[query[0], entry[0]]
            first, last = ranges[entry[0]]
            assert (first <= names[entry] < last) == expected, (query, entry)


def _told(union: BankUnion) -> list[tuple[int, int, int]]:
    series, starts, _ = union.places(union.ids)
    sources = union.sources(union.ids)
    return list(zip(sources.tolist(), series.tolist(), starts.tolist(), strict=True))


@settings(deadline=None)
@given(query=st.sampled_from(places()), entry=st.sampled_from(places()))
def test_overlaps_compares_the_times_themselves(
    query: tuple[int, int, int], entry: tuple[int, int, int]
):
    union = union_of()
    _, series, starts = torch.tensor([query]).T
    ids = union.ids[_told(union).index(entry)].reshape(1, 1)
    begin, end = lasts(*query)
    its_begin, its_end = lasts(*entry)
    found = union.overlaps(series, starts, torch.cat([ids, torch.tensor([[-1]])], dim=1))
    assert found.tolist() == [[its_begin < end and its_end > begin, False]]


def test_nothing_is_hidden_at_the_end_of_time():
    union = union_of()
    rule = Exclusion(seq_len=L, pred_len=H, past_only=True)
    later = torch.full((5,), union.end_of_time)
    hidden = union.hidden(torch.arange(5), later, rule)
    for source in range(3):
        ids = union.ids[union.sources(union.ids) == source]
        assert int(ids[-1]) < int(hidden[:, source, 0].min())
