"""memory_index/exact_shard.py: the search against a slow loop, and against leaks."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from memory_index import exact_shard
from memory_index.exact_shard import ExactShard
from memory_index.exclusion import Exclusion
from memory_index.merge import merge_neighbours
from tests.memory_index.brute_force import nearest_by_loop, same

NOTHING = torch.zeros(1, 2, dtype=torch.int64)


def nothing_hidden(queries: int) -> Tensor:
    return NOTHING.expand(queries, 2)


def make_shard(size: int, width: int, seed: int, levels: int = 0) -> ExactShard:
    """Random keys with gaps between ids; with ``levels``, few distinct keys, hence many ties."""
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randn(size, width, generator=generator)
    if levels:
        keys = torch.randint(levels, (size, width), generator=generator).float()
    ids = torch.randperm(3 * size, generator=generator)[:size].sort().values
    return ExactShard(keys, ids)


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(0, 90),
    k=st.integers(1, 10),
    levels=st.sampled_from([0, 1, 2, 3]),
    reach=st.sampled_from([0, 3, 60, 10**6]),
    tile=st.sampled_from([7, 64, 16384]),
    margin=st.sampled_from([0, 2, 32]),
    seed=st.integers(0, 10**6),
)
def test_distances_and_ids_equal_the_slow_loop(
    size: int, k: int, levels: int, reach: int, tile: int, margin: int, seed: int
):
    shard = make_shard(size, 3, seed, levels)
    generator = torch.Generator().manual_seed(seed + 1)
    queries = torch.randint(3, (5, 3), generator=generator).float()
    first = torch.randint(-20, 3 * size + 20, (5,), generator=generator)
    hidden = torch.stack([first, first + torch.randint(reach + 1, (5,), generator=generator)], 1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact_shard, "ENTRY_TILE", tile)
        patch.setattr(exact_shard, "QUERY_TILE", 2)
        patch.setattr(exact_shard, "MARGIN", margin)
        found = shard.search(queries, hidden, k)

    same(found, nearest_by_loop(shard.keys, shard.ids, queries, hidden, k))


@pytest.mark.parametrize("k", range(1, 11))
def test_every_top_k_is_the_head_of_the_next(k: int):
    shard = make_shard(200, 16, seed=1)
    queries = torch.randn(6, 16)
    _, ids = shard.search(queries, nothing_hidden(6), k)
    _, more = shard.search(queries, nothing_hidden(6), k + 1)
    assert torch.equal(ids, more[:, :k])


def test_a_thousand_equal_keys_give_the_smallest_ids():
    shard = make_shard(1000, 8, seed=2, levels=1)
    _, ids = shard.search(torch.zeros(1, 8), NOTHING, 5)
    assert ids[0].tolist() == shard.ids[:5].tolist()
    _, ids = shard.search(torch.zeros(1, 8), shard.ids[:4:3][None], 5)  # the first three hidden
    assert ids[0].tolist() == shard.ids[3:8].tolist()


def test_near_ties_far_from_the_origin_keep_their_order():
    # |q|^2 + |m|^2 - 2 q.m in float32 has lost these differences altogether.
    offsets = torch.tensor([3.0, 1.0, 2.0, 4.0])
    shard = ExactShard(3000 + offsets[:, None] / 1024, torch.arange(4))
    _, ids = shard.search(torch.full((1, 1), 3000.0), NOTHING, 4)
    assert ids.tolist() == [[1, 2, 0, 3]]


@pytest.mark.parametrize("seed", range(20))
def test_neighbours_nearer_to_each_other_than_the_product_can_tell_keep_their_order(
    seed: int, monkeypatch: pytest.MonkeyPatch
):
    # Far from the origin even float64 rounds these distances away, in one query of five.
    monkeypatch.setattr(exact_shard, "MARGIN", 0)
    generator = torch.Generator().manual_seed(seed)
    far = 1e6 * torch.randn(1, 24, generator=generator)
    near = torch.randn(400, 4, generator=generator) / 1000
    shard = ExactShard(torch.cat([far.expand(400, 24), near], dim=1), torch.arange(400))
    query, hidden = torch.cat([far, torch.zeros(1, 4)], dim=1), torch.tensor([[3, 40]])
    same(shard.search(query, hidden, 5), nearest_by_loop(shard.keys, shard.ids, query, hidden, 5))


@pytest.mark.parametrize("shards", [2, 3, 7])
def test_the_answer_does_not_depend_on_how_entries_are_shared_out(shards: int):
    whole = make_shard(500, 4, seed=3, levels=2)
    queries, hidden = torch.randint(2, (9, 4)).float(), torch.tensor([[300, 700]]).expand(9, 2)
    owner = torch.randint(shards, (500,))
    parts = [
        ExactShard(whole.keys[owner == one], whole.ids[owner == one]).search(queries, hidden, 7)
        for one in range(shards)
    ]
    merged = merge_neighbours(
        torch.cat([part[0] for part in parts], dim=1), torch.cat([part[1] for part in parts], 1), 7
    )
    same(merged, whole.search(queries, hidden, 7))


@settings(max_examples=60, deadline=None)
@given(
    query_start=st.integers(0, 120),
    query_variate=st.integers(0, 2),
    planted_variate=st.integers(0, 2),
    shift=st.sampled_from([-30, -13, -12, -11, -4, 0, 4, 11, 12, 13, 30]),
    past_only=st.booleans(),
)
def test_a_planted_copy_of_the_answer_is_never_retrieved(
    query_start: int, query_variate: int, planted_variate: int, shift: int, past_only: bool
):
    seq_len, pred_len, num_variates = 8, 4, 3
    ids = torch.arange(160 * num_variates)
    keys = torch.randn(len(ids), 6, generator=torch.Generator().manual_seed(query_start))
    planted_start = min(max(query_start + shift, 0), 159)
    planted = planted_start * num_variates + planted_variate
    query = keys[query_start * num_variates + query_variate]
    keys[planted] = query  # the best match there can be
    shard = ExactShard(keys, ids)

    rule = Exclusion(seq_len=seq_len, pred_len=pred_len, past_only=past_only)
    hidden = rule.hidden_range(torch.tensor([query_start])).clamp(0, 160) * num_variates
    _, found = shard.search(query[None], hidden, 10)

    own = set(range(query_start, query_start + seq_len + pred_len))
    for entry in found[found >= 0].tolist():
        start = entry // num_variates
        covered = set(range(start, start + seq_len + pred_len))
        assert not covered & own, "an entry overlaps the query"
        assert not past_only or max(covered) < query_start + seq_len, "an entry is from the future"
    holds_answer = planted_start in range(query_start - 11, query_start + 12)
    visible = not holds_answer and not (past_only and planted_start > query_start)
    assert (planted in found[0].tolist()) == visible


def test_fewer_entries_than_neighbours_wanted_leave_empty_slots():
    shard = make_shard(3, 4, seed=4)
    distances, ids = shard.search(torch.zeros(1, 4), NOTHING, 5)
    assert sorted(ids[0, :3].tolist()) == shard.ids.tolist()
    assert ids[0, 3:].tolist() == [-1, -1]
    assert distances[0, 3:].tolist() == [torch.inf, torch.inf]


def test_an_empty_shard_and_no_query_answer_with_empty_slots():
    distances, ids = make_shard(0, 4, seed=5).search(torch.zeros(2, 4), nothing_hidden(2), 3)
    assert ids.tolist() == [[-1] * 3] * 2
    assert distances.isinf().all()
    distances, ids = make_shard(5, 4, seed=5).search(torch.zeros(0, 4), nothing_hidden(0), 3)
    assert distances.shape == ids.shape == (0, 3)


def test_refuses_a_query_of_another_width():
    with pytest.raises(ValueError, match=r"Z2=4, got shape \(1, 3\)"):
        make_shard(5, 4, seed=6).search(torch.zeros(1, 3), NOTHING, 3)


def test_refuses_no_neighbours():
    with pytest.raises(ValueError, match=r"gram.top_k must be at least 1, got 0"):
        make_shard(5, 4, seed=6).search(torch.zeros(1, 4), NOTHING, 0)


@pytest.mark.parametrize("shape", [(2, 2), (1,), (1, 3)])
def test_refuses_anything_but_one_hidden_range_per_query(shape: tuple[int, ...]):
    hidden = torch.zeros(shape, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"each of 1 queries needs one hidden range, got shape"):
        make_shard(5, 4, seed=6).search(torch.zeros(1, 4), hidden, 3)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_refuses_keys_and_queries_that_are_not_finite(value: float):
    broken = torch.tensor([[0.0], [value]])
    with pytest.raises(ValueError, match=r"keys must be finite, got 1 of 2 rows .* first is row 1"):
        ExactShard(broken, torch.arange(2))
    shard = ExactShard(torch.zeros(2, 1), torch.arange(2))
    with pytest.raises(ValueError, match="queries must be finite, got 1 of 2"):
        shard.search(broken, nothing_hidden(2), 1)


def test_refuses_parts_of_different_lengths():
    with pytest.raises(ValueError, match=r"got shapes \(2, 1\) and \(3,\)"):
        ExactShard(torch.zeros(2, 1), torch.arange(3))


@pytest.mark.parametrize("ids", [[-1, 0], [1, 0], [4, 4]])
def test_refuses_ids_that_are_negative_or_do_not_ascend(ids: list[int]):
    with pytest.raises(ValueError, match="ids must ascend from 0 on, none twice"):
        ExactShard(torch.zeros(2, 1), torch.tensor(ids))
