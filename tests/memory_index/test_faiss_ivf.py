"""memory_index/faiss_ivf.py: lists against brute force over what their codes say."""

import functools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from memory_index import faiss_ivf
from memory_index.faiss_ivf import IvfShard, group_equal
from memory_index.merge import merge_neighbours
from tests.memory_index.brute_force import nearest_by_loop, same
from tests.memory_index.shards import IVF_KINDS, NLIST, choice_of, make_shard, train

WIDTH, ENTRIES = 8, 900
KEYS = torch.randn(ENTRIES, WIDTH, generator=torch.Generator().manual_seed(0))
IDS = torch.arange(ENTRIES) * 2 + 1
QUERIES = torch.randn(30, WIDTH, generator=torch.Generator().manual_seed(1))
HIDDEN = torch.tensor([[0, 0], [-9, 700], [400, 401], [300, 1500], [1200, 9999], [7, 3]]).repeat(
    5, 1
)
TRAINED = {kind: train(kind, KEYS) for kind in IVF_KINDS}


@functools.cache
def whole(kind: str) -> IvfShard:
    shard = make_shard(kind, [(KEYS, IDS)], WIDTH, TRAINED[kind])
    assert isinstance(shard, IvfShard)
    return shard


def search(shard: IvfShard, effort: int, k: int = 5) -> tuple[Tensor, Tensor]:
    return shard.search(QUERIES, HIDDEN, k, effort, shard.route(QUERIES, effort))


@pytest.mark.parametrize("kind", IVF_KINDS)
@pytest.mark.parametrize("effort", [1, 3, NLIST])
def test_finds_the_nearest_codes_of_the_lists_it_visits(kind: str, effort: int):
    shard = whole(kind)
    decoded = torch.from_numpy(shard.faiss_index.sa_decode(shard.encode(KEYS).numpy()))
    lists, _ = shard.route(QUERIES, effort)
    centroids = TRAINED[kind]["centroids"]
    owner = torch.cdist(KEYS, centroids).argmin(dim=1)
    distances, ids = search(shard, effort)
    for row in range(len(QUERIES)):
        nearest_lists = torch.cdist(QUERIES[row : row + 1], centroids)[0].argsort()[:effort]
        assert sorted(lists[row].tolist()) == sorted(nearest_lists.tolist())
        visited = torch.isin(owner, nearest_lists)
        expected_distances, expected_ids = nearest_by_loop(
            decoded[visited], IDS[visited], QUERIES[row : row + 1], HIDDEN[row : row + 1], 5
        )
        # FAISS adds the distances up in another order, so near ties may swap places.
        torch.testing.assert_close(distances[row], expected_distances[0], rtol=1e-4, atol=1e-4)
        assert len({*ids[row].tolist()} & {*expected_ids[0].tolist()}) >= 4


def test_all_lists_of_plain_keys_give_the_true_neighbours():
    distances, ids = search(whole("ivf_flat"), NLIST)
    expected = nearest_by_loop(KEYS, IDS, QUERIES, HIDDEN, 5)
    assert ids.tolist() == expected[1].tolist()
    torch.testing.assert_close(distances, expected[0])


@pytest.mark.parametrize("kind", IVF_KINDS)
@pytest.mark.parametrize("shards", [2, 3])
def test_shards_with_one_training_merge_to_what_one_shard_finds(kind: str, shards: int):
    owner = torch.randint(shards, (ENTRIES,), generator=torch.Generator().manual_seed(2))
    found = []
    for number in range(shards):
        mine = owner == number
        shard = make_shard(kind, [(KEYS[mine], IDS[mine])], WIDTH, TRAINED[kind])
        found.append(search(shard, 3))  # type: ignore[arg-type]
    columns = [torch.cat(part, dim=1) for part in zip(*found, strict=True)]
    same(merge_neighbours(columns[0], columns[1], 5), search(whole(kind), 3))


@pytest.mark.parametrize("kind", IVF_KINDS)
def test_the_answer_does_not_depend_on_who_else_asks(kind: str):
    shard = whole(kind)
    together = search(shard, 2)
    for row in range(len(QUERIES)):
        one = slice(row, row + 1)
        route = shard.route(QUERIES[one], 2)
        alone = shard.search(QUERIES[one], HIDDEN[one], 5, 2, route)
        same(alone, (together[0][one], together[1][one]))


@pytest.mark.parametrize("kind", IVF_KINDS)
@settings(deadline=None, max_examples=25)
@given(first=st.integers(-5, 1810), length=st.integers(-5, 2000), effort=st.integers(1, NLIST))
def test_no_hidden_id_is_ever_returned(kind: str, first: int, length: int, effort: int):
    shard, hidden = whole(kind), torch.tensor([[first, first + length]])
    ids = shard.search(KEYS[:1], hidden, 900, effort, shard.route(KEYS[:1], effort))[1]
    found = ids[ids >= 0].tolist()
    visible = [name for name in IDS.tolist() if not first <= name < first + length]
    assert set(found) <= set(visible)
    assert len(found) == len(set(found))
    if effort == NLIST:
        assert len(found) == len(visible)


@pytest.mark.parametrize("kind", IVF_KINDS)
def test_fewer_visible_than_wanted_leave_empty_slots(kind: str):
    shard = whole(kind)
    hidden = torch.tensor([[int(IDS[3]), 10**9]])
    distances, ids = shard.search(KEYS[:1], hidden, 6, NLIST, shard.route(KEYS[:1], NLIST))
    assert sorted(ids[0, :3].tolist()) == IDS[:3].tolist()
    assert ids[0, 3:].tolist() == [-1] * 3
    assert distances[0, 3:].isinf().all()


@pytest.mark.parametrize("kind", IVF_KINDS)
def test_an_empty_shard_and_no_query_answer_with_empty_slots(kind: str):
    empty = IvfShard(choice_of(kind), TRAINED[kind], [])
    assert len(empty) == 0
    assert (search(empty, 3)[1] == -1).all()
    none = QUERIES[:0]
    found = whole(kind).search(none, HIDDEN[:0], 5, 3, whole(kind).route(none, 3))
    assert found[0].shape == found[1].shape == (0, 5)


@pytest.mark.parametrize("kind", IVF_KINDS)
def test_chunks_may_be_empty_and_come_one_by_one(kind: str):
    parts = [(KEYS[:0], IDS[:0]), (KEYS[:100], IDS[:100]), (KEYS[100:], IDS[100:])]
    shard = make_shard(kind, parts, WIDTH, TRAINED[kind])
    assert len(shard) == ENTRIES
    same(search(shard, 3), search(whole(kind), 3))  # type: ignore[arg-type]


def test_more_effort_than_lists_visits_all_of_them():
    shard = whole("ivf_flat")
    assert shard.max_effort == NLIST
    assert shard.route(QUERIES, 10**6)[0].shape == (len(QUERIES), NLIST)


def test_tables_too_large_to_keep_do_not_change_what_is_found(monkeypatch: pytest.MonkeyPatch):
    with_tables = whole("ivf_pq")
    monkeypatch.setattr(faiss_ivf, "MAX_TABLE_BYTES", 0)
    without = whole.__wrapped__("ivf_pq")
    assert with_tables.faiss_index.use_precomputed_table == 1
    assert without.faiss_index.use_precomputed_table == -1
    one, other = search(with_tables, 3), search(without, 3)
    torch.testing.assert_close(one[0], other[0], rtol=1e-4, atol=1e-4)
    assert float((one[1] == other[1]).float().mean()) > 0.95


def test_refuses_keys_and_queries_that_are_not_finite():
    shard, broken = whole("ivf_flat"), torch.full((1, WIDTH), torch.nan)
    with pytest.raises(ValueError, match="keys must be finite, got 1 of 1 rows"):
        shard.encode(broken)
    with pytest.raises(ValueError, match="queries must be finite, got 1 of 1 rows"):
        shard.search(broken, HIDDEN[:1], 5, 1, shard.route(QUERIES[:1], 1))


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=12))
def test_queries_are_grouped_by_equal_ranges(ranges: list[tuple[int, int]]):
    hidden = torch.tensor(ranges, dtype=torch.int64).reshape(-1, 2)
    groups = [group.tolist() for group in group_equal(hidden)]
    assert sorted(query for group in groups for query in group) == list(range(len(ranges)))
    assert all(len({ranges[query] for query in group}) == 1 for group in groups)
    assert len(groups) == len(set(ranges))
    assert all(isinstance(group, np.ndarray) for group in group_equal(hidden))
