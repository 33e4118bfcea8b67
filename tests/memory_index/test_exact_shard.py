"""memory_index/exact_shard.py: the search against a slow loop, and against leaks."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from memory_index import exact_shard
from memory_index.exact_shard import ExactShard
from memory_index.exclusion import Exclusion

RULE = Exclusion(seq_len=5, pred_len=2, past_only=False)
ALL = Exclusion(seq_len=1, pred_len=0, past_only=False)


def search_by_loop(
    shard: ExactShard, queries: Tensor, series: Tensor, starts: Tensor, k: int, rule: Exclusion
) -> tuple[list[list[float]], list[list[int]]]:
    """Every query against every entry, sorted by (distance, id)."""
    span = rule.seq_len + rule.pred_len
    distances, ids = [], []
    for query, own_series, own_start in zip(queries, series.tolist(), starts.tolist(), strict=True):
        found = []
        for key, name, other_series, start in zip(
            shard.keys,
            shard.ids.tolist(),
            shard.series.tolist(),
            shard.starts.tolist(),
            strict=True,
        ):
            hidden = abs(start - own_start) < span or (rule.past_only and start > own_start)
            if hidden and other_series == own_series:
                continue
            found.append((float((key.double() - query.double()).square().sum().float()), name))
        best = sorted(found)[:k]
        best += [(torch.inf, -1)] * (k - len(best))
        distances.append([distance for distance, _ in best])
        ids.append([name for _, name in best])
    return distances, ids


def make_shard(size: int, width: int, seed: int, levels: int = 0) -> ExactShard:
    """Random keys with shuffled ids; with ``levels``, few distinct keys, hence many ties."""
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randn(size, width, generator=generator)
    if levels:
        keys = torch.randint(levels, (size, width), generator=generator).float()
    ids = torch.randperm(3 * size, generator=generator)[:size]
    series = torch.randint(2, (size,), generator=generator)
    return ExactShard(keys, ids, series, torch.randint(40, (size,), generator=generator))


@settings(max_examples=40, deadline=None)
@given(
    size=st.integers(0, 90),
    k=st.integers(1, 10),
    levels=st.sampled_from([0, 1, 2, 3]),
    past_only=st.booleans(),
    tile=st.sampled_from([7, 64, 16384]),
    margin=st.sampled_from([0, 2, 32]),
    seed=st.integers(0, 10**6),
)
def test_distances_and_ids_equal_the_slow_loop(
    size: int, k: int, levels: int, past_only: bool, tile: int, margin: int, seed: int
):
    shard = make_shard(size, 3, seed, levels)
    rule = Exclusion(seq_len=5, pred_len=2, past_only=past_only)
    generator = torch.Generator().manual_seed(seed + 1)
    queries = torch.randint(3, (5, 3), generator=generator).float()
    series = torch.randint(2, (5,), generator=generator)
    starts = torch.randint(40, (5,), generator=generator)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact_shard, "ENTRY_TILE", tile)
        patch.setattr(exact_shard, "QUERY_TILE", 2)
        patch.setattr(exact_shard, "MARGIN", margin)
        distances, ids = shard.search(queries, series, starts, k, rule)

    expected_distances, expected_ids = search_by_loop(shard, queries, series, starts, k, rule)
    assert ids.tolist() == expected_ids
    assert distances.tolist() == expected_distances


@pytest.mark.parametrize("k", range(1, 11))
def test_every_top_k_is_the_head_of_the_next(k: int):
    shard = make_shard(200, 16, seed=1)
    queries, zeros = torch.randn(6, 16), torch.zeros(6, dtype=torch.int64)
    _, ids = shard.search(queries, zeros, zeros, k, RULE)
    _, more = shard.search(queries, zeros, zeros, k + 1, RULE)
    assert torch.equal(ids, more[:, :k])


def test_a_thousand_equal_keys_give_the_smallest_ids():
    shard = make_shard(1000, 8, seed=2, levels=1)
    zeros = torch.zeros(1, dtype=torch.int64)
    _, ids = shard.search(torch.zeros(1, 8), zeros, zeros + 10**6, 5, RULE)
    assert ids[0].tolist() == shard.ids.sort().values[:5].tolist()


def test_near_ties_far_from_the_origin_keep_their_order():
    # |q|^2 + |m|^2 - 2 q.m in float32 has lost these differences altogether.
    offsets = torch.tensor([3.0, 1.0, 2.0, 4.0])
    keys = 3000 + offsets[:, None] / 1024
    zeros = torch.zeros(4, dtype=torch.int64)
    shard = ExactShard(keys, torch.arange(4), zeros, zeros)
    _, ids = shard.search(torch.full((1, 1), 3000.0), zeros[:1], zeros[:1] + 99, 4, ALL)
    assert ids.tolist() == [[1, 2, 0, 3]]


def test_the_answer_does_not_depend_on_how_entries_are_laid_out():
    shard = make_shard(500, 4, seed=3, levels=2)
    order = torch.randperm(500)
    shuffled = ExactShard(
        shard.keys[order], shard.ids[order], shard.series[order], shard.starts[order]
    )
    zeros = torch.zeros(9, dtype=torch.int64)
    queries = torch.randint(2, (9, 4)).float()
    for one, other in zip(
        shard.search(queries, zeros, zeros, 7, RULE),
        shuffled.search(queries, zeros, zeros, 7, RULE),
        strict=True,
    ):
        assert torch.equal(one, other)


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
    starts = torch.arange(160).repeat_interleave(num_variates)
    ids = torch.arange(160 * num_variates)
    keys = torch.randn(len(ids), 6, generator=torch.Generator().manual_seed(query_start))
    planted_start = min(max(query_start + shift, 0), 159)
    planted = planted_start * num_variates + planted_variate
    query = keys[query_start * num_variates + query_variate]
    keys[planted] = query  # the best match there can be
    shard = ExactShard(keys, ids, torch.zeros_like(ids), starts)

    rule = Exclusion(seq_len=seq_len, pred_len=pred_len, past_only=past_only)
    zero = torch.zeros(1, dtype=torch.int64)
    _, found = shard.search(query[None], zero, zero + query_start, 10, rule)

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
    zero = torch.zeros(1, dtype=torch.int64)
    distances, ids = shard.search(torch.zeros(1, 4), zero, zero + 10**6, 5, RULE)
    assert sorted(ids[0, :3].tolist()) == shard.ids.sort().values.tolist()
    assert ids[0, 3:].tolist() == [-1, -1]
    assert distances[0, 3:].tolist() == [torch.inf, torch.inf]


def test_an_empty_shard_and_no_query_answer_with_empty_slots():
    empty = make_shard(0, 4, seed=5)
    zeros = torch.zeros(2, dtype=torch.int64)
    distances, ids = empty.search(torch.zeros(2, 4), zeros, zeros, 3, RULE)
    assert ids.tolist() == [[-1] * 3] * 2
    assert distances.isinf().all()
    distances, ids = make_shard(5, 4, seed=5).search(
        torch.zeros(0, 4), zeros[:0], zeros[:0], 3, RULE
    )
    assert distances.shape == ids.shape == (0, 3)


def test_refuses_a_query_of_another_width():
    zero = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"Z2=4, got shape \(1, 3\)"):
        make_shard(5, 4, seed=6).search(torch.zeros(1, 3), zero, zero, 3, RULE)


def test_refuses_no_neighbours():
    zero = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"gram.top_k must be at least 1, got 0"):
        make_shard(5, 4, seed=6).search(torch.zeros(1, 4), zero, zero, 0, RULE)


def test_refuses_keys_and_queries_that_are_not_finite():
    zeros = torch.zeros(2, dtype=torch.int64)
    broken = torch.tensor([[0.0], [torch.nan]])
    with pytest.raises(ValueError, match=r"keys must be finite, got 1 of 2 rows .* first is row 1"):
        ExactShard(broken, torch.arange(2), zeros, zeros)
    shard = ExactShard(torch.zeros(2, 1), torch.arange(2), zeros, zeros)
    with pytest.raises(ValueError, match="queries must be finite, got 1 of 2"):
        shard.search(broken, zeros, zeros, 1, RULE)


def test_refuses_parts_of_different_lengths_and_negative_ids():
    zeros = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"got shapes \(2, 1\), \(3,\), \(2,\) and \(2,\)"):
        ExactShard(torch.zeros(2, 1), torch.arange(3), zeros, zeros)
    with pytest.raises(ValueError, match="ids must not be negative, got -1"):
        ExactShard(torch.zeros(2, 1), torch.arange(2) - 1, zeros, zeros)
