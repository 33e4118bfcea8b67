"""memory_index/sharded_index.py: shards on several ranks against one index, and against a loop."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from memory_index import exact_shard, faiss_flat, placement
from memory_index.groups import RankGroup
from memory_index.shard import Route, Shard
from memory_index.sharded_index import SearchError, ShardedIndex
from tests.helpers.ranks import run_ranks
from tests.memory_index.brute_force import nearest_by_loop, same
from tests.memory_index.real_windows import RealWindows
from tests.memory_index.shards import IVF_KINDS, KINDS, make_index, make_shard, parts_of, train

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
                same(alone.search(case.queries, case.hidden, case.k), expected)
                found = index.search(case.queries[mine], case.hidden[mine], case.k)
                same(found, (expected[0][mine], expected[1][mine]))
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
            assert time.monotonic() - started < 10
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
    small_tiles()
    groups = [dist.new_group(members, backend="gloo") for members in ([0, 1], [2, 3])]
    node, place = divmod(rank, 2)
    group = RankGroup(groups[node], [2 * node, 2 * node + 1], place)
    case = cases()[1]
    index = ShardedIndex(
        Faulty(make_shard("flat", parts_of(case.keys, case.ids, place, 2), WIDTH)), group, case.ids
    )
    mine = slice(rank, None, world_size)
    expected = nearest_by_loop(case.keys, case.ids, case.queries, case.hidden, case.k)
    found = index.search(case.queries[mine], case.hidden[mine], case.k)
    same(found, (expected[0][mine], expected[1][mine]))
    # A failure stays within its node, and is told by the number of the rank in the job.
    index.shard.fails = "search" if rank == 3 else ""  # type: ignore[attr-defined]
    if node == 1:
        with pytest.raises(SearchError, match="failed on rank 3: MemoryError"):
            index.search(case.queries[mine], case.hidden[mine], case.k)
    else:
        same(index.search(case.queries[mine], case.hidden[mine], case.k), found)


@pytest.mark.ranks
def test_each_node_searches_its_own_copy():
    run_ranks(two_nodes, 4)


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
