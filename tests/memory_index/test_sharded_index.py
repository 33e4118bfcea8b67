"""memory_index/sharded_index.py: shards on several ranks against one index, and against a loop."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from memory_index import exact_shard, faiss_flat, placement
from memory_index.groups import RankGroup
from memory_index.sharded_index import ShardedIndex
from tests.helpers.ranks import run_ranks
from tests.memory_index.brute_force import nearest_by_loop, same
from tests.memory_index.real_windows import RealWindows
from tests.memory_index.shards import IVF_KINDS, make_index, make_shard, parts_of, train

EXACT = ("exact", "flat")
CHUNK, WIDTH = 16, 4


def small_tiles() -> None:
    """Make several chunks and blocks of few entries. For a process that ends soon."""
    placement.SMALLEST_CHUNK = CHUNK
    faiss_flat.SMALLEST_BLOCK = faiss_flat.LARGEST_BLOCK = 24
    exact_shard.ENTRY_TILE, exact_shard.QUERY_TILE, exact_shard.MARGIN = 20, 5, 2


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    name: str
    keys: Tensor
    queries: Tensor
    hidden: Tensor
    k: int
    owner: Callable[[int, int], int] = lambda query, ranks: query % ranks
    """Which rank asks a query."""

    @property
    def ids(self) -> Tensor:
        return torch.arange(len(self.keys)) * 2 + 3


def cases() -> list[Case]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def few_levels(*shape: int, levels: int = 2) -> Tensor:
        return torch.randint(levels, shape, generator=generator).float()

    def ranges(count: int) -> Tensor:
        first = torch.randint(-20, 320, (count,), generator=generator)
        return torch.stack(
            [first, first + torch.randint(-5, 300, (count,), generator=generator)], 1
        )

    edges = [
        3 + 2 * CHUNK * chunk + step for chunk in (0, 1, 2, 3, 9) for step in (-2, -1, 0, 1, 2)
    ]
    borders = [(edge, edge + size) for edge in edges for size in (0, 2, 2 * CHUNK, 2 * CHUNK * 4)]
    borders += [(edge - size, edge) for edge in edges for size in (2, 2 * CHUNK, 9999)]
    nothing = torch.zeros(12, 2, dtype=torch.int64)
    flat = torch.zeros(200, WIDTH)
    flat[::7] = normal(29, WIDTH)
    one = {"keys": normal(150, WIDTH), "queries": normal(12, WIDTH), "hidden": ranges(12), "k": 5}
    return [
        Case(name="random keys", **one),
        Case(name="few distinct keys", keys=few_levels(150, WIDTH), queries=few_levels(12, WIDTH),
             hidden=ranges(12), k=5),
        Case(name="all keys equal", keys=torch.ones(150, WIDTH), queries=torch.ones(12, WIDTH),
             hidden=ranges(12), k=7),
        Case(name="windows without variance", keys=flat, queries=torch.zeros(12, WIDTH),
             hidden=ranges(12), k=5),
        Case(name="borders of chunks", keys=few_levels(170, WIDTH, levels=3),
             queries=few_levels(len(borders), WIDTH, levels=3), hidden=torch.tensor(borders), k=4),
        Case(name="more neighbours than visible", keys=normal(40, WIDTH),
             queries=normal(12, WIDTH), hidden=ranges(12), k=50),
        Case(name="fewer chunks than ranks", keys=normal(CHUNK + 1, WIDTH),
             queries=normal(12, WIDTH), hidden=nothing, k=5),
        Case(name="no entry", keys=normal(0, WIDTH), queries=normal(12, WIDTH),
             hidden=nothing, k=2),
        Case(name="all from the last rank", owner=lambda query, ranks: ranks - 1, **one),
        Case(name="all from the first rank", owner=lambda query, ranks: 0, **one),
        Case(name="more from each rank", owner=lambda query, ranks: int((query / 12) ** 2 * ranks),
             **one),
        Case(name="no query", keys=normal(50, WIDTH), queries=normal(0, WIDTH),
             hidden=nothing[:0], k=3),
    ]  # fmt: skip


def find_what_a_loop_finds(rank: int, world_size: int) -> None:
    small_tiles()
    group = RankGroup(dist.group.WORLD if world_size > 1 else None, range(world_size), rank)
    for case in cases():
        owner = torch.tensor([case.owner(n, world_size) for n in range(len(case.queries))])
        mine = (owner == rank).nonzero()[:, 0]
        expected = nearest_by_loop(case.keys, case.ids, case.queries, case.hidden, case.k)
        for kind in EXACT:
            whole = make_shard(kind, [(case.keys, case.ids)], WIDTH)
            alone = ShardedIndex(whole, RankGroup(), case.ids)
            part = make_shard(kind, parts_of(case.keys, case.ids, rank, world_size), WIDTH)
            index = ShardedIndex(part, group, case.ids)
            try:
                if rank == 0:
                    same(alone.search(case.queries, case.hidden, case.k), expected)
                for count in (1, len(mine), 2):  # more than were ever asked for, and fewer again
                    some = mine[:count]
                    found = index.search(case.queries[some], case.hidden[some], case.k)
                    same(found, (expected[0][some], expected[1][some]))
            except AssertionError as error:
                raise AssertionError(f"{case.name}, {kind}, rank {rank}") from error


def test_one_rank_equals_the_slow_loop(monkeypatch: pytest.MonkeyPatch):
    for module, name in [
        (placement, "SMALLEST_CHUNK"), (faiss_flat, "SMALLEST_BLOCK"),
        (faiss_flat, "LARGEST_BLOCK"), (exact_shard, "ENTRY_TILE"), (exact_shard, "QUERY_TILE"),
        (exact_shard, "MARGIN"),
    ]:  # fmt: skip
        monkeypatch.setattr(module, name, getattr(module, name))  # put back at the end
    find_what_a_loop_finds(0, 1)


@pytest.mark.ranks
@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_shards_of_exact_kinds_equal_one_index_and_the_slow_loop(world_size: int):
    run_ranks(find_what_a_loop_finds, world_size)


def search_as_one_rank_would(rank: int, world_size: int, path: Path) -> None:
    saved = torch.load(path, weights_only=True)
    keys, ids, queries, hidden = (saved[name] for name in ("keys", "ids", "queries", "hidden"))
    group = RankGroup(dist.group.WORLD, range(world_size), rank)
    mine = slice(rank, None, world_size)
    for kind in IVF_KINDS:
        trained, expected = saved[kind]["trained"], saved[kind]["found"]
        shard = make_shard(kind, parts_of(keys, ids, rank, world_size), keys.shape[1], trained)
        index = make_index(kind, shard, group, keys, ids, effort=8)
        same(index.search(queries[mine], hidden[mine], 5), tuple(part[mine] for part in expected))


@pytest.mark.ranks
def test_shards_of_ivf_kinds_find_what_one_index_finds_in_real_windows(
    tmp_path: Path, dual_windows: RealWindows
):
    real = dual_windows
    saved = {"keys": real.keys, "ids": real.ids, "queries": real.queries, "hidden": real.hidden}
    for kind in IVF_KINDS:
        trained = train(kind, real.keys[::2].contiguous(), 64)
        whole = make_shard(kind, parts_of(real.keys, real.ids), real.keys.shape[1], trained)
        index = make_index(kind, whole, RankGroup(), real.keys, real.ids, effort=8)
        found = index.search(real.queries, real.hidden, 5)
        assert (found[1] >= 0).all()
        saved[kind] = {"trained": trained, "found": found}
    torch.save(saved, tmp_path / "windows.pt")
    for world_size in (2, 3):
        run_ranks(search_as_one_rank_would, world_size, tmp_path / "windows.pt")
