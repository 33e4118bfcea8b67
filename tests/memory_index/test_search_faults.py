"""A search that fails on one rank fails on all, with one message, and the next one works."""

import time

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from memory_index.groups import RankGroup
from memory_index.shard import Route, Shard
from memory_index.sharded_index import SearchError, ShardedIndex
from tests.helpers.ranks import run_ranks
from tests.memory_index.brute_force import nearest_by_loop, same
from tests.memory_index.shards import KINDS, make_index, make_shard, parts_of, train

WIDTH = 4


class Faulty:
    """A shard that raises where it is told to."""

    def __init__(self, shard: Shard) -> None:
        self.shard, self.fails = shard, ""
        self.max_effort = shard.max_effort

    def __len__(self) -> int:
        return len(self.shard)

    def route(self, queries: Tensor, effort: int) -> Route:
        if self.fails == "route":
            raise RuntimeError("no way")
        return self.shard.route(queries, effort)

    def search(
        self, queries: Tensor, hidden: Tensor, k: int, effort: int, route: Route
    ) -> tuple[Tensor, Tensor]:
        if self.fails == "search":
            raise MemoryError("out of memory")
        return self.shard.search(queries, hidden, k, effort, route)


def fail_together(rank: int, world_size: int) -> None:
    group = RankGroup(dist.group.WORLD, range(world_size), rank)
    keys = torch.randn(3000, WIDTH, generator=torch.Generator().manual_seed(0))
    ids, queries = torch.arange(3000), keys[rank : 10 * rank : 3]
    nothing = torch.zeros(len(queries), 2, dtype=torch.int64)
    for kind in KINDS:
        trained = train(kind, keys)
        shard = Faulty(make_shard(kind, parts_of(keys, ids, rank, world_size), WIDTH, trained))
        index = make_index(kind, shard, group, keys, ids, effort=64)
        encode = index._encode
        before = index.search(queries, nothing, 5)
        failures = [("search", [1], "MemoryError: out of memory"),
                    ("route", [2], "RuntimeError: no way"),
                    ("search", [0, 1, 2], "MemoryError: out of memory"),
                    ("route", [1, 2], "RuntimeError: no way")]  # fmt: skip
        if encode is not None:
            failures.append(("encode", [1], "ValueError: no such window"))
        for what, where, message in failures:
            if rank in where:
                shard.fails = what
                index._encode = no_window if what == "encode" else encode
            started = time.monotonic()
            with pytest.raises(SearchError) as raised:
                index.search(queries, nothing, 5)
            assert time.monotonic() - started < 30
            expected = f"the search in the memory failed on rank {where[0]}: {message}"
            assert group.gather_objects(str(raised.value)) == [expected] * world_size
            shard.fails, index._encode = "", encode
            same(index.search(queries, nothing, 5), before)


def no_window(ids: Tensor) -> Tensor:
    raise ValueError("no such window")


@pytest.mark.ranks
def test_a_rank_that_raises_makes_all_raise_the_same_and_the_next_search_works():
    run_ranks(fail_together, 3)


def disagree(rank: int, world_size: int) -> None:
    group = RankGroup(dist.group.WORLD, range(world_size), rank)
    keys, ids = torch.randn(30, WIDTH), torch.arange(30)
    index = ShardedIndex(make_shard("flat", parts_of(keys, ids, rank, 2), WIDTH), group, ids)
    nothing = torch.zeros(1, 2, dtype=torch.int64)
    with pytest.raises(SearchError, match=r"ask for different things: .* \[\[32, 3\], \[32, 4\]\]"):
        index.search(keys[:1], nothing, 3 + rank)
    with pytest.raises(SearchError, match=r"ask for different things: .* \[\[32, 3\], \[28, 3\]\]"):
        index.search(keys[:1, rank:], nothing, 3)
    broken = keys[:1] / (1 - rank)  # a query of the second rank is not finite
    with pytest.raises(SearchError, match="rank 0: ValueError: queries must be finite, got 1 of 2"):
        index.search(broken, nothing, 3)
    assert index.search(keys[:1], nothing, 3)[1].shape == (1, 3)


@pytest.mark.ranks
def test_refuses_ranks_that_ask_for_different_things_and_queries_that_are_not_finite():
    run_ranks(disagree, 2)


def two_nodes(rank: int, world_size: int) -> None:
    groups = [dist.new_group(members, backend="gloo") for members in ([0, 1], [2, 3])]
    node, place = divmod(rank, 2)
    group = RankGroup(groups[node], [2 * node, 2 * node + 1], place)
    keys = torch.randn(3000, WIDTH, generator=torch.Generator().manual_seed(rank // 2))
    ids = torch.arange(3000) + 10_000 * node  # so that a node would notice the other's answers
    shard = Faulty(make_shard("flat", parts_of(keys, ids, place, 2), WIDTH))
    index = ShardedIndex(shard, group, ids)
    queries, hidden = keys[place : 50 : 5 + place], torch.tensor([[10_500, 11_000]])
    hidden = hidden.expand(len(queries), 2)
    found = index.search(queries, hidden, 5)
    same(found, nearest_by_loop(keys, ids, queries, hidden, 5))
    # A failure stays within its node, and is told by the number of the rank in the job.
    shard.fails = "search" if rank == 3 else ""
    if node == 1:
        with pytest.raises(SearchError, match="failed on rank 3: MemoryError"):
            index.search(queries, hidden, 5)
    else:
        same(index.search(queries, hidden, 5), found)


@pytest.mark.ranks
def test_each_node_searches_its_own_copy_and_fails_alone():
    run_ranks(two_nodes, 4)
