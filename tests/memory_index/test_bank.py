"""memory_index/bank.py: which entries there are, what they must not see, their values by id."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from memory_index.bank import READ_AT_ONCE, MemoryBank
from memory_index.config import BankConfig
from memory_index.exclusion import Exclusion, visible

L, H = 6, 3


def make_series(*shapes: tuple[int, int]) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.normal(size=shape).astype(np.float32) for shape in shapes]


def make_bank(
    series: list[np.ndarray],
    rows: list[tuple[int, int]],
    clock_offsets: list[int] | None = None,
    **settings: int,
) -> MemoryBank:
    return MemoryBank(series, rows, L, H, BankConfig(**settings), clock_offsets)


def entries_by_loop(
    series: list[np.ndarray],
    rows: list[tuple[int, int]],
    stride: int,
    clock_offsets: list[int] | None = None,
) -> list[tuple[int, int, int]]:
    """(series, start, variate) of every entry, in the order of their ids."""
    entries = [
        (index, start, variate)
        for index, (first, end) in enumerate(rows)
        for start in range(first, end, stride)
        if start + L + H <= end
        for variate in range(series[index].shape[1])
    ]
    if clock_offsets is None:
        return entries
    # One clock: time comes before the series.
    return sorted(entries, key=lambda entry: (clock_offsets[entry[0]] + entry[1], entry[0]))


@settings(deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(0, 30), st.integers(1, 4)), min_size=1, max_size=3),
    first=st.integers(0, 5),
    stride=st.integers(1, 4),
    offsets=st.none() | st.lists(st.integers(0, 12), min_size=3, max_size=3),
)
def test_entries_and_values_equal_the_obvious_loop(
    lengths: list[tuple[int, int]], first: int, stride: int, offsets: list[int] | None
):
    series = make_series(*[(first + length + 4, n) for length, n in lengths])
    rows = [(first, first + length) for length, _ in lengths]  # four rows after it are not train
    clock_offsets = offsets and offsets[: len(series)]
    bank = make_bank(series, rows, clock_offsets, bank_stride=stride)

    expected = entries_by_loop(series, rows, stride, clock_offsets)

    assert triples(bank) == [list(entry) for entry in expected]
    assert len(bank) == bank.num_candidates == len(expected)
    assert (bank.ids.diff() > 0).all()
    windows, futures = bank.windows(bank.ids), bank.futures(bank.ids)
    for row, (index, start, variate) in enumerate(expected):
        context = series[index][start : start + L, variate].astype(np.float64)
        future = series[index][start + L : start + L + H, variate]
        assert windows[row].tolist() == context.tolist()
        normalised = (future - context.mean()) / np.sqrt(context.var() + 1e-5)
        np.testing.assert_allclose(futures[row].numpy(), normalised, rtol=2e-4, atol=2e-5)


def test_anchored_futures_subtract_the_last_value_of_their_window():
    series = make_series((20, 2))
    bank = make_bank(series, [(0, 20)])
    context, future = series[0][4 : 4 + L, 1], series[0][4 + L : 4 + L + H, 1]
    expected = (future - context[-1]) / np.sqrt(context.var() + 1e-5)
    got = bank.futures(torch.tensor(4 * 2 + 1), anchored=True)
    torch.testing.assert_close(got, torch.from_numpy(expected))


@pytest.mark.parametrize("extra", [-1, 0, 1, READ_AT_ONCE + 1])
def test_many_futures_are_those_of_one_id_at_a_time(extra: int):
    bank = make_bank(make_series((200, 3), (90, 1)), [(0, 200), (0, 90)])
    few = torch.cat([bank.ids, torch.tensor([-1])])
    ids = few[torch.arange(READ_AT_ONCE + extra) * 7 % len(few)]

    got = bank.futures(ids, anchored=True)

    one_by_one = torch.stack([bank.futures(one, anchored=True) for one in few])
    expected = one_by_one[torch.arange(len(ids)) * 7 % len(few)]
    assert torch.equal(got, expected)


@pytest.mark.parametrize("offsets", [None, [0, 4]])
def test_ids_are_time_major_and_do_not_depend_on_stride_or_sampling(offsets: list[int] | None):
    series = make_series((20, 3), (20, 3))
    full = make_bank(series, [(0, 20), (0, 20)], offsets)
    thin = make_bank(series, [(0, 20), (0, 20)], offsets, bank_stride=5, max_memory_size=7)
    assert full.ids[:4].tolist() == ([0, 1, 2, 3] if offsets is None else [0, 1, 2, 6])
    assert set(thin.ids.tolist()) <= set(full.ids.tolist())
    assert full.ids.diff().min() > 0
    places = {name: place for place, name in zip(triples(full), full.ids.tolist(), strict=True)}
    assert triples(thin) == [places[name] for name in thin.ids.tolist()]


def triples(bank: MemoryBank) -> list[list[int]]:
    """(series, start, variate) of every entry."""
    return torch.stack(bank.places(bank.ids), dim=1).tolist()


@settings(deadline=None, max_examples=40)
@given(
    offsets=st.none() | st.tuples(st.integers(0, 20), st.integers(0, 20)),
    start=st.integers(0, 40),
    own=st.integers(0, 1),
    past_only=st.booleans(),
)
def test_hidden_entries_are_those_that_share_time_with_the_query(
    offsets: tuple[int, int] | None, start: int, own: int, past_only: bool
):
    bank = make_bank(make_series((40, 2), (30, 3)), [(0, 40), (0, 30)], offsets and list(offsets))
    rule = Exclusion(seq_len=L, pred_len=H, past_only=past_only)
    hidden = bank.hidden(torch.tensor([own]), torch.tensor([start]), rule)
    now = start + (offsets[own] if offsets else 0)
    expected = []
    for series, row, _ in triples(bank):
        time = row + (offsets[series] if offsets else 0)
        covered, asked = set(range(time, time + L + H)), set(range(now, now + L + H))
        answers = bool(covered & asked) or (past_only and max(covered) >= now + L)
        expected.append(not (answers and (offsets is not None or series == own)))
    assert visible(hidden, bank.ids)[0].tolist() == expected


def test_places_on_the_clock_tell_which_windows_share_time():
    bank = make_bank(make_series((40, 2), (30, 3)), [(0, 40), (0, 30)], [0, 7])
    clock, rows = bank.on_clock(torch.tensor([0, 1]), torch.tensor([9, 2]))
    assert (clock.tolist(), rows.tolist()) == ([0, 0], [9, 9])


def test_slots_without_a_neighbour_read_as_zeros():
    bank = make_bank(make_series((20, 2)), [(0, 20)])
    ids = torch.tensor([[3, -1], [-1, -1]])
    windows, futures = bank.windows(ids), bank.futures(ids)
    assert windows.shape == (2, 2, L)
    assert futures.shape == (2, 2, H)
    assert windows[ids < 0].abs().max() == 0
    assert futures[ids < 0].abs().max() == 0
    assert windows[0, 0].abs().min() > 0
    series, starts, variates = bank.places(ids)
    assert starts.tolist() == bank.starts(ids).tolist() == [[1, -1], [-1, -1]]
    assert series.tolist() == bank.series(ids).tolist() == [[0, -1], [-1, -1]]
    assert variates.tolist() == [[1, -1], [-1, -1]]


def test_a_constant_window_has_a_finite_future():
    bank = make_bank([np.full((20, 1), 3.7, dtype=np.float32)], [(0, 20)])
    assert bank.futures(bank.ids).abs().max() < 1e-3


@settings(deadline=None)
@given(
    counts=st.lists(st.tuples(st.integers(9, 60), st.integers(1, 7)), min_size=1, max_size=3),
    limit=st.integers(1, 200),
)
def test_a_sample_has_the_size_asked_for_and_repeats_nothing(
    counts: list[tuple[int, int]], limit: int
):
    series = make_series(*counts)
    rows = [(0, length) for length, _ in counts]
    full, sampled = make_bank(series, rows), make_bank(series, rows, max_memory_size=limit)
    assert len(sampled) == min(limit, len(full))
    assert sampled.num_candidates == len(full)
    assert set(sampled.ids.tolist()) <= set(full.ids.tolist())
    assert (sampled.ids.diff() > 0).all()


def test_a_sample_is_even_over_variates_and_time():
    # 7 variates and every 14th entry: a stride over ids would meet variate 0 alone.
    series = make_series((L + H - 1 + 200, 7))
    bank = make_bank(series, [(0, len(series[0]))], num_samples=100)
    assert bank.places(bank.ids)[2].bincount(minlength=7).tolist() == [15, 15, 14, 14, 14, 14, 14]
    assert bank.starts(bank.ids).diff().tolist() == [2] * 99


def test_reads_memory_mapped_series_and_tensors_alike(tmp_path: Path):
    series = make_series((30, 2))
    np.save(tmp_path / "series.npy", series[0])
    mapped = np.load(tmp_path / "series.npy", mmap_mode="r")
    plain = make_bank(series, [(0, 30)])
    for other in (mapped, torch.from_numpy(series[0])):
        bank = MemoryBank([other], [(0, 30)], L, H, BankConfig())
        assert torch.equal(bank.windows(bank.ids), plain.windows(plain.ids))


def test_a_split_shorter_than_one_window_makes_an_empty_bank():
    bank = make_bank(make_series((20, 2)), [(0, L + H - 1)])
    assert len(bank) == 0
    assert bank.windows(bank.ids).shape == (0, L)


def test_refuses_training_rows_outside_the_series():
    with pytest.raises(ValueError, match=r"training rows \[0, 21\) .* series 0, which has 20 rows"):
        make_bank(make_series((20, 2)), [(0, 21)])


def test_refuses_a_clock_offset_too_few():
    with pytest.raises(ValueError, match="the bank got 2 series and 1 clock offsets"):
        make_bank(make_series((20, 2), (20, 2)), [(0, 20), (0, 20)], [0])


def test_refuses_an_id_that_lies_before_its_series_on_the_clock():
    bank = make_bank(make_series((20, 1), (20, 1)), [(0, 20), (0, 20)], [0, 5])
    with pytest.raises(ValueError, match="id 7 starts at row -2 of series 1, which has 20 rows"):
        bank.windows(torch.tensor([7]))


def test_refuses_a_missing_range():
    with pytest.raises(ValueError, match="1 series and 0 training ranges"):
        make_bank(make_series((20, 2)), [])


def test_refuses_a_series_of_one_axis():
    with pytest.raises(ValueError, match=r"series 0 must be \(T, N\), got shape \(20,\)"):
        make_bank([np.zeros(20, dtype=np.float32)], [(0, 20)])


def test_refuses_ids_of_another_bank():
    bank = make_bank(make_series((20, 2)), [(0, 20)])
    with pytest.raises(ValueError, match="id 40 is beyond the 40 values"):
        bank.windows(torch.tensor([0, 40]))
    with pytest.raises(ValueError, match="id 24 starts at row 12 of series 0, which has 20 rows"):
        bank.windows(torch.tensor([0, 24]))
