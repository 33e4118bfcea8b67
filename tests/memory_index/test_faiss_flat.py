"""memory_index/faiss_flat.py: FAISS's candidates, and still the reference's answer, bit for bit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from memory_index import exact_shard, faiss_flat
from memory_index.exact_shard import ExactShard
from memory_index.faiss_flat import FlatShard
from tests.memory_index.brute_force import nearest_by_loop, same
from tests.memory_index.real_windows import RealWindows

BLOCK = 16


def small_blocks(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(faiss_flat, "SMALLEST_BLOCK", BLOCK)
    patch.setattr(faiss_flat, "LARGEST_BLOCK", BLOCK)


@settings(max_examples=120, deadline=None)
@given(
    size=st.integers(0, 100),
    k=st.integers(1, 10),
    levels=st.sampled_from([0, 1, 2, 3]),
    margin=st.sampled_from([0, 2, 32]),
    offset=st.sampled_from([0.0, 1000.0]),
    ranges=st.lists(st.tuples(st.integers(-5, 320), st.integers(-3, 200)), min_size=1, max_size=6),
    seed=st.integers(0, 10**6),
)
def test_equals_the_slow_loop_whatever_is_hidden(
    size: int,
    k: int,
    levels: int,
    margin: int,
    offset: float,
    ranges: list[tuple[int, int]],
    seed: int,
):
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randn(size, 3, generator=generator)
    if levels:
        keys = torch.randint(levels, (size, 3), generator=generator).float()
    ids = torch.randperm(3 * size, generator=generator)[:size].sort().values
    queries = offset + torch.randint(3, (len(ranges), 3), generator=generator).float()
    hidden = torch.tensor([(first, first + length) for first, length in ranges])

    with pytest.MonkeyPatch.context() as patch:
        small_blocks(patch)
        patch.setattr(exact_shard, "ENTRY_TILE", 21)
        patch.setattr(exact_shard, "MARGIN", margin)
        found = FlatShard(keys + offset, ids).search(queries, hidden, k)

    same(found, nearest_by_loop(keys + offset, ids, queries, hidden, k))


@pytest.mark.parametrize("border", [0, BLOCK, 2 * BLOCK, 100])
def test_ranges_that_begin_or_end_at_the_border_of_a_block(
    border: int, monkeypatch: pytest.MonkeyPatch
):
    small_blocks(monkeypatch)
    keys, ids = torch.randn(100, 4), torch.arange(100)
    edges = [border + step for step in (-1, 0, 1)]
    ranges = [(edge, edge + length) for edge in edges for length in (0, 1, BLOCK, 40, 1000)]
    ranges += [(edge - length, edge) for edge in edges for length in (1, BLOCK, 40, 1000)]
    hidden = torch.tensor(ranges)
    queries = torch.randn(len(hidden), 4)
    same(
        FlatShard(keys, ids).search(queries, hidden, 5),
        nearest_by_loop(keys, ids, queries, hidden, 5),
    )


@settings(deadline=None)
@given(
    first=st.integers(0, 60),
    size=st.integers(1, 80),
    smallest=st.integers(1, 30),
    ranges=st.lists(st.tuples(st.integers(0, 150), st.integers(0, 150)), min_size=1, max_size=5),
)
def test_every_visible_row_is_searched_once(
    first: int, size: int, smallest: int, ranges: list[tuple[int, int]]
):
    block = slice(first, first + size)
    begin, end = torch.tensor([(low, max(low, high)) for low, high in ranges]).T
    seen: list[tuple[int, int]] = []
    for queries, rows in faiss_flat._segments(block, begin, end, smallest):
        assert queries
        assert rows.start < rows.stop
        seen += [(query, row) for query in queries for row in range(200)[rows]]
    expected = [
        (query, row)
        for query in range(len(ranges))
        for row in range(200)[block]
        if not begin[query] <= row < end[query]
    ]
    assert sorted(seen) == expected


def test_queries_that_see_all_search_all_at_once():
    hidden = torch.tensor([[40, 40], [200, 300], [10, 20], [300, 300]])
    segments = list(faiss_flat._segments(slice(0, 100), *hidden.T, 25))
    assert segments[0] == ([0, 1, 3], slice(0, 100))
    assert segments[1:] == [
        ([2], slice(0, 10)), ([2], slice(20, 25)), ([2], slice(25, 50)), ([2], slice(50, 100)),
    ]  # fmt: skip


def test_near_ties_far_from_the_origin_keep_their_order():
    # FAISS's float32 has lost these differences altogether, and the order of 4000 entries.
    steps = torch.randperm(4000, generator=torch.Generator().manual_seed(1))
    keys = 3000 + steps[:, None] / 4096
    queries, hidden = torch.full((30, 1), 3000.0), torch.zeros(30, 2, dtype=torch.int64)
    _, ids = FlatShard(keys, torch.arange(4000)).search(queries, hidden, 10)
    nearest = (keys[:, 0] - 3000).argsort(stable=True)[:10]
    assert ids.tolist() == [nearest.tolist()] * 30


def test_windows_without_variance_go_to_the_smallest_visible_ids():
    # As long stretches of rain gauges have them: more equal keys than candidates are kept.
    keys = torch.zeros(3000, 8)
    keys[:100] = torch.randn(100, 8)
    hidden = torch.tensor([[0, 0], [90, 2000], [90, 2998]])
    found = FlatShard(keys, torch.arange(3000)).search(torch.zeros(3, 8), hidden, 5)
    expected = [[*range(100, 105)], [*range(2000, 2005)], [2998, 2999]]
    for row, best in zip(found[1].tolist(), expected, strict=True):
        assert row[: len(best)] == best
    same(found, nearest_by_loop(keys, torch.arange(3000), torch.zeros(3, 8), hidden, 5))


@pytest.mark.parametrize("key", ["anchored", "dual"])
def test_equals_the_reference_on_real_windows(key: str, request: pytest.FixtureRequest):
    real: RealWindows = request.getfixturevalue(f"{key}_windows")
    queries, hidden = real.queries[::4], real.hidden[::4]
    same(
        FlatShard(real.keys, real.ids).search(queries, hidden, 5),
        ExactShard(real.keys, real.ids).search(queries, hidden, 5),
    )


def test_few_queries_and_many_find_the_same():
    # FAISS multiplies matrices only for more queries than a threshold.
    keys, queries = torch.randn(2000, 16), torch.randn(40, 16)
    shard, hidden = FlatShard(keys, torch.arange(2000)), torch.tensor([[5, 900]]).expand(40, 2)
    together = shard.search(queries, hidden, 5)
    apart = [shard.search(queries[[one]], hidden[:1], 5) for one in range(40)]
    same(together, (torch.cat([d for d, _ in apart]), torch.cat([i for _, i in apart])))


@pytest.mark.parametrize(
    ("queries", "k", "message"),
    [
        (torch.zeros(1, 3), 3, r"Z2=4, got shape \(1, 3\)"),
        (torch.zeros(1, 4), 0, "gram.top_k must be at least 1, got 0"),
        (torch.full((1, 4), torch.nan), 1, "queries must be finite, got 1 of 1"),
    ],
)
def test_refuses_what_the_reference_refuses(queries: Tensor, k: int, message: str):
    with pytest.raises(ValueError, match=message):
        FlatShard(torch.zeros(2, 4), torch.arange(2)).search(
            queries, torch.zeros(1, 2, dtype=torch.int64), k
        )
