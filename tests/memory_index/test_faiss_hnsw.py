"""memory_index/faiss_hnsw.py: the graph, its exclusion, and where it gives way to brute force."""

import functools

import faiss
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from memory_index.faiss_hnsw import MAX_EFFORT, HnswShard
from tests.memory_index.brute_force import nearest_by_loop, recall, same
from tests.memory_index.real_windows import RealWindows

WIDTH, ENTRIES = 8, 800
KEYS = torch.randn(ENTRIES, WIDTH, generator=torch.Generator().manual_seed(0))
IDS = torch.arange(ENTRIES) * 2 + 1
QUERIES = torch.randn(30, WIDTH, generator=torch.Generator().manual_seed(1))
HIDDEN = torch.tensor([[0, 0], [-9, 700], [400, 401], [300, 1500], [1200, 9999], [7, 3]]).repeat(
    5, 1
)


@functools.cache
def graph() -> HnswShard:
    return HnswShard(KEYS, IDS)


@pytest.fixture
def shard() -> HnswShard:
    return graph()


@pytest.mark.parametrize("effort", [MAX_EFFORT, MAX_EFFORT + 1])
def test_from_the_highest_effort_on_nothing_is_missed(shard: HnswShard, effort: int):
    assert shard.max_effort == MAX_EFFORT
    found = shard.search(QUERIES, HIDDEN, 5, effort)
    same(found, nearest_by_loop(KEYS, IDS, QUERIES, HIDDEN, 5))


def test_a_walk_finds_nearly_all_and_measures_what_it_finds(shard: HnswShard):
    distances, ids = shard.search(QUERIES, HIDDEN, 5, 200)
    truth = nearest_by_loop(KEYS, IDS, QUERIES, HIDDEN, 5)
    assert recall(ids, truth[1]) > 0.97
    assert recall(shard.search(QUERIES, HIDDEN, 5, 1)[1], truth[1]) < 0.97  # or effort is ignored
    keys = KEYS[torch.searchsorted(IDS, ids.clamp_min(1))]
    expected = (keys - QUERIES[:, None]).square().sum(dim=-1)
    torch.testing.assert_close(distances, expected.masked_fill(ids < 0, torch.inf))


@settings(deadline=None, max_examples=40)
@given(
    first=st.integers(-5, 1610),
    length=st.integers(-5, 1800),
    effort=st.sampled_from([1, 8, 64, MAX_EFFORT]),
    query=st.integers(0, ENTRIES - 1),
)
def test_no_hidden_id_is_ever_returned(first: int, length: int, effort: int, query: int):
    hidden = torch.tensor([[first, first + length]])
    ids = graph().search(KEYS[query : query + 1], hidden, 20, effort)[1][0].tolist()
    found = [name for name in ids if name >= 0]
    assert not [name for name in found if first <= name < first + length]
    assert len(found) == len(set(found))
    assert set(found) <= set(IDS.tolist())


def test_the_answer_does_not_depend_on_who_else_asks(shard: HnswShard):
    together = shard.search(QUERIES, HIDDEN, 5, 16)
    for row in range(len(QUERIES)):
        one = slice(row, row + 1)
        alone = shard.search(QUERIES[one], HIDDEN[one], 5, 16)
        same(alone, (together[0][one], together[1][one]))


def test_an_empty_shard_and_no_query_answer_with_empty_slots(shard: HnswShard):
    empty = HnswShard(torch.empty(0, WIDTH), torch.empty(0, dtype=torch.int64))
    assert len(empty) == 0
    assert (empty.search(QUERIES, HIDDEN, 5, 16)[1] == -1).all()
    found = shard.search(QUERIES[:0], HIDDEN[:0], 5, 16)
    assert found[0].shape == found[1].shape == (0, 5)


def test_keys_are_held_once_by_graph_and_brute_force(shard: HnswShard):
    storage = faiss.downcast_index(shard._graph.storage)
    held = faiss.rev_swig_ptr(storage.get_xb(), WIDTH)
    before = float(held[0])
    try:
        held[0] = 1e3
        assert float(shard._exact.keys[0, 0]) == 1e3
    finally:
        held[0] = before


def test_finds_nearly_all_of_the_nearest_real_windows(anchored_windows: RealWindows):
    real = anchored_windows
    shard = HnswShard(real.keys[::2].contiguous(), real.ids[::2].contiguous())
    exact = shard.search(real.queries, real.hidden, 5, MAX_EFFORT)[1]
    # Measured here: 0.998 and more from 32 candidates on, twelve thousand entries.
    assert recall(shard.search(real.queries, real.hidden, 5, 64)[1], exact) > 0.995


@pytest.mark.parametrize(
    ("queries", "k", "message"),
    [
        (torch.zeros(1, 3), 3, r"Z2=8, got shape \(1, 3\)"),
        (torch.zeros(1, 8), 0, "gram.top_k must be at least 1, got 0"),
        (torch.full((1, 8), torch.nan), 1, "queries must be finite, got 1 of 1"),
    ],
)
@pytest.mark.parametrize("effort", [16, MAX_EFFORT])
def test_refuses_what_the_reference_refuses(
    shard: HnswShard, queries: Tensor, k: int, message: str, effort: int
):
    with pytest.raises(ValueError, match=message):
        shard.search(queries, HIDDEN[:1], k, effort)


def test_refuses_keys_that_are_not_finite():
    with pytest.raises(ValueError, match="keys must be finite, got 1 of 2 rows"):
        HnswShard(torch.tensor([[0.0], [torch.nan]]), torch.arange(2))
