"""K neighbours are found wherever K are visible, however little of an index is visited first."""

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from memory_index import placement
from memory_index.groups import RankGroup
from memory_index.sharded_index import ShardedIndex
from tests.helpers.ranks import run_ranks
from tests.memory_index.brute_force import nearest_by_loop
from tests.memory_index.shards import IVF_KINDS, KINDS, make_index, make_shard, parts_of, train

WIDTH = 4


def clusters(kind: str, rank: int = 0, ranks: int = 1) -> tuple[ShardedIndex, Tensor, Tensor]:
    """Make eight clusters far apart, one list each, of 200 ids in a row each; and their keys."""
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(1600, WIDTH, generator=generator) / 10
    keys += 10 * torch.arange(8).repeat_interleave(200)[:, None]
    ids = torch.arange(1600)
    trained = train(kind, keys)
    shard = make_shard(kind, parts_of(keys, ids, rank, ranks), WIDTH, trained)
    group = RankGroup(dist.group.WORLD if ranks > 1 else None, range(ranks), rank)
    return make_index(kind, shard, group, keys, ids, effort=1), keys, ids


@pytest.mark.parametrize("kind", IVF_KINDS)
def test_k_neighbours_are_found_though_the_nearest_list_is_hidden(kind: str):
    index, keys, ids = clusters(kind)
    centroids = train(kind, keys)["centroids"]
    owner = torch.cdist(keys, centroids).argmin(dim=1)
    members = [(owner == number).nonzero()[:, 0] for number in range(len(centroids))]
    queries = centroids + 0.01
    hidden = torch.stack([torch.stack([part[0], part[-1] + 1]) for part in members])
    # Visiting one list finds nothing: all of it is hidden.
    once = index.shard.search(queries, hidden, 5, 1, index.shard.route(queries, 1))
    assert (once[1] == -1).all()

    distances, found = index.search(queries, hidden, 5)

    assert (found >= 0).all()
    assert not ((found >= hidden[:, :1]) & (found < hidden[:, 1:])).any()
    assert index.effort == 1  # what was tuned stays
    if kind == "ivf_flat":  # the next effort visits all of its eight lists
        expected = nearest_by_loop(keys, ids, queries, hidden, 5)
        assert found.tolist() == expected[1].tolist()
        torch.testing.assert_close(distances, expected[0])


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=20)
@given(
    ranges=st.lists(
        st.tuples(st.integers(-10, 1610), st.integers(0, 1700)), min_size=1, max_size=4
    ),
    k=st.sampled_from([1, 5, 30]),
)
def test_as_many_are_found_as_are_visible(kind: str, ranges: list[tuple[int, int]], k: int):
    if kind not in MADE:
        MADE[kind] = clusters(kind)
    index, keys, ids = MADE[kind]
    hidden = torch.tensor([(first, first + length) for first, length in ranges])
    found = index.search(keys[: len(hidden)], hidden, k)[1]
    for (first, end), row in zip(hidden.tolist(), found.tolist(), strict=True):
        visible = [name for name in ids.tolist() if not first <= name < end]
        names = [name for name in row if name >= 0]
        assert len(names) == len({*names}) == min(k, len(visible))
        assert {*names} <= {*visible}


MADE: dict[str, tuple[ShardedIndex, Tensor, Tensor]] = {}


def widen_together(rank: int, world_size: int) -> None:
    placement.SMALLEST_CHUNK = 100
    for kind in KINDS:
        index, keys, _ = clusters(kind, rank, world_size)
        # Only the last rank has a query that has to look further; it has five, the others one.
        hidden = torch.tensor([[0, 0]])
        if rank == world_size - 1:
            hidden = torch.tensor([[0, 0], [0, 200], [0, 400], [0, 1597], [0, 1600]])
        found = index.search(keys[: len(hidden)], hidden, 5)[1]
        counts = (found >= 0).sum(dim=1).tolist()
        assert counts == ([5, 5, 5, 3, 0] if rank == world_size - 1 else [5]), (kind, counts)
        if kind != "hnsw":  # whose graphs differ with the shards
            alone = clusters(kind)[0].search(keys[: len(hidden)], hidden, 5)[1]
            assert found.tolist() == alone.tolist(), kind


@pytest.mark.ranks
def test_ranks_look_further_together():
    run_ranks(widen_together, 3)
