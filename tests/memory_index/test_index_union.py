"""memory_index/index_union.py: several indexes answer as one search over all entries would."""

import pytest
import torch
from torch import Tensor

from memory_index.exact_shard import ExactShard
from memory_index.groups import RankGroup
from memory_index.index_union import IndexUnion
from memory_index.shard import Unrouted
from memory_index.sharded_index import ShardedIndex

WIDTH, K = 4, 5
FIRST = torch.tensor([0, 100, 150, 400])
IDS = {0: torch.arange(0, 90, 3), 2: torch.arange(4, 200)}
"""Entries by source, numbered within it; source 1 has none."""


def keys_of(source: int) -> Tensor:
    generator = torch.Generator().manual_seed(source)
    return torch.randn(len(IDS[source]), WIDTH, generator=generator)


def union() -> IndexUnion:
    parts = {
        number: ShardedIndex(Unrouted(ExactShard(keys_of(number), ids)), RankGroup(), ids)
        for number, ids in IDS.items()
    }
    return IndexUnion(parts, FIRST)


def by_loop(query: Tensor, hidden: Tensor) -> list[tuple[float, int]]:
    found = []
    for source, ids in IDS.items():
        first, end = hidden[source].tolist()
        for key, local in zip(keys_of(source), ids.tolist(), strict=True):
            number = local + int(FIRST[source])
            if not first <= number < end:
                found.append((float((key - query).square().sum()), number))
    return sorted(found)[:K]


def whole(source: int) -> list[int]:
    return FIRST[source : source + 2].tolist()


HIDDEN = {
    "nothing": [[0, 0], [100, 100], [150, 150]],
    "some of each": [[30, 60], [100, 150], [150, 250]],
    "the first source": [whole(0), whole(1), [150, 150]],
    "the last source": [[0, 10], [100, 150], whole(2)],
    "all but two entries": [[3, 100], [100, 150], [155, 400]],
    "everything": [whole(0), whole(1), whole(2)],
}


@pytest.mark.parametrize("name", HIDDEN)
def test_the_nearest_of_all_sources_are_found(name: str):
    queries = torch.randn(6, WIDTH, generator=torch.Generator().manual_seed(9))
    hidden = torch.tensor(HIDDEN[name]).expand(6, -1, -1)
    distances, ids = union().search(queries, hidden, K)
    assert distances.shape == ids.shape == (6, K)
    for row in range(6):
        expected = by_loop(queries[row], hidden[row])
        count = len(expected)
        assert ids[row].tolist() == [number for _, number in expected] + [-1] * (K - count)
        wanted = torch.tensor([distance for distance, _ in expected])
        torch.testing.assert_close(distances[row, :count], wanted)
        assert (distances[row, count:] == torch.inf).all()


def test_each_query_has_its_own_scope():
    queries = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(9))
    names = ("the first source", "everything", "the last source")
    hidden = torch.tensor([HIDDEN[name] for name in names])
    _, ids = union().search(queries, hidden, K)
    assert (ids[0] >= 150).all()
    assert (ids[1] == -1).all()
    assert ((ids[2] >= 0) & (ids[2] < 100)).all()


def test_a_rank_without_a_query_gets_an_empty_answer():
    distances, ids = union().search(torch.empty(0, WIDTH), torch.empty(0, 3, 2).long(), K)
    assert distances.shape == ids.shape == (0, K)


def test_a_source_that_nobody_asks_is_not_searched():
    index = union()
    searched: list[int] = []
    for number, part in index.parts.items():
        search = part.search

        def noted(*asked: object, number: int = number, search=search):  # type: ignore[no-untyped-def]
            searched.append(number)
            return search(*asked)

        part.search = noted  # type: ignore[method-assign]
    hidden = torch.tensor(HIDDEN["the first source"]).expand(2, -1, -1)
    index.search(torch.zeros(2, WIDTH), hidden, K)
    assert searched == [2]
