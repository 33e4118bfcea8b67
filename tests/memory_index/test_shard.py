"""memory_index/shard.py: every kind behind one interface."""

import pytest
import torch

from memory_index.exact_shard import ExactShard
from memory_index.faiss_hnsw import MAX_EFFORT, HnswShard
from memory_index.shard import Unrouted, no_route
from tests.memory_index.brute_force import nearest_by_loop, recall, same
from tests.memory_index.shards import IVF_KINDS, KINDS, NLIST, make_shard, train

WIDTH, ENTRIES = 8, 500
KEYS = torch.randn(ENTRIES, WIDTH, generator=torch.Generator().manual_seed(0))
IDS = torch.arange(ENTRIES) * 2
HIDDEN = torch.tensor([[0, 0], [100, 300]])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("on_gpu", [False, True])
def test_every_kind_is_searched_alike(kind: str, on_gpu: bool):
    shard = make_shard(kind, [(KEYS, IDS)], WIDTH, train(kind, KEYS), on_gpu=on_gpu)
    effort = shard.max_effort
    route = shard.route(KEYS[:2], effort)
    distances, ids = shard.search(KEYS[:2], HIDDEN, 5, effort, route)
    assert len(shard) == ENTRIES
    assert (distances.dtype, ids.dtype) == (torch.float32, torch.int64)
    assert (route[0].dtype, route[1].dtype) == (torch.int32, torch.float32)
    assert route[0].shape == route[1].shape == (2, NLIST if kind in IVF_KINDS else 0)
    expected = nearest_by_loop(KEYS, IDS, KEYS[:2], HIDDEN, 5)
    # At the highest effort only the codes of the compressed kinds can hide anything.
    assert recall(ids, expected[1]) >= (0.6 if kind in ("ivf_pq", "ivf_sq8") else 1.0)


@pytest.mark.parametrize(
    ("kind", "effort"), [("exact", 0), ("flat", 0), ("hnsw", MAX_EFFORT), ("ivf_flat", NLIST)]
)
def test_kinds_that_miss_nothing_have_no_effort_to_raise(kind: str, effort: int):
    shard = make_shard(kind, [(KEYS, IDS)], WIDTH, train(kind, KEYS))
    assert shard.max_effort == effort


def test_nothing_is_prepared_for_shards_without_lists():
    for route in (no_route(KEYS[:3]), Unrouted(ExactShard(KEYS, IDS)).route(KEYS[:3], 9)):
        assert [part.shape for part in route] == [(3, 0), (3, 0)]
        assert [part.dtype for part in route] == [torch.int32, torch.float32]


def test_the_effort_reaches_the_graph():
    graph = HnswShard(KEYS, IDS)
    route = no_route(KEYS[:2])
    for effort in (1, 64, MAX_EFFORT):
        found = Unrouted(graph).search(KEYS[:2], HIDDEN, 5, effort, route)
        same(found, graph.search(KEYS[:2], HIDDEN, 5, effort))
