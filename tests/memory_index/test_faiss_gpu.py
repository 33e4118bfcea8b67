"""memory_index/faiss_gpu.py: blocks of time on a device that cannot exclude, against one index.

No GPU is needed: what one does with a block, a search without any selector, is done on the CPU.
"""

import functools
from collections.abc import Callable
from types import SimpleNamespace

import faiss
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from memory_index import faiss_gpu
from memory_index.faiss_gpu import BlockSearch, GpuIvfShard
from memory_index.faiss_ivf import IvfShard
from tests.memory_index.brute_force import same
from tests.memory_index.shards import (
    IVF_KINDS,
    NLIST,
    choice_of,
    make_shard,
    search_without_selector,
    train,
)

WIDTH, CHUNK, ENTRIES = 8, 50, 1000
KEYS = torch.randn(ENTRIES, WIDTH, generator=torch.Generator().manual_seed(0))
IDS = torch.arange(ENTRIES) * 3 + 2
PARTS = [(KEYS[one : one + CHUNK], IDS[one : one + CHUNK]) for one in range(0, ENTRIES, CHUNK)]
# Twenty chunks make ten blocks of two chunks, 300 ids each, as there may be sixteen at most.
BLOCK_IDS = 2 * CHUNK * 3


@functools.cache
def trained(kind: str) -> dict[str, Tensor]:
    return train(kind, KEYS)


@functools.cache
def pair(kind: str) -> tuple[GpuIvfShard, IvfShard]:
    gpu = make_shard(kind, PARTS, WIDTH, trained(kind), on_gpu=True)
    host = make_shard(kind, PARTS, WIDTH, trained(kind))
    assert isinstance(gpu, GpuIvfShard)
    assert isinstance(host, IvfShard)
    return gpu, host


def both(
    kind: str, queries: Tensor, hidden: Tensor, k: int = 5, effort: int = 3
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    gpu, host = pair(kind)
    # Routed one by one: FAISS rounds distances to centroids by how many queries come together.
    routes = [gpu.route(queries[one : one + 1], effort) for one in range(len(queries))]
    lists, coarse = (torch.cat(part) for part in zip(*routes, strict=True))
    return (
        gpu.search(queries, hidden, k, effort, (lists, coarse)),
        host.search(queries, hidden, k, effort, (lists, coarse)),
    )


@pytest.mark.parametrize("kind", IVF_KINDS)
@settings(deadline=None, max_examples=40)
@given(
    ranges=st.lists(
        st.tuples(st.integers(-10, 3010), st.integers(-5, 3100)), min_size=1, max_size=6
    ),
    k=st.sampled_from([1, 5, 40]),
    effort=st.integers(1, NLIST),
)
def test_equals_the_index_in_one_piece(
    kind: str, ranges: list[tuple[int, int]], k: int, effort: int
):
    hidden = torch.tensor([(first, first + length) for first, length in ranges])
    queries = torch.randn(len(hidden), WIDTH, generator=torch.Generator().manual_seed(k))
    same(*both(kind, queries, hidden, k, effort))


@pytest.mark.parametrize("kind", IVF_KINDS)
def test_ranges_inside_across_around_and_outside_blocks(kind: str):
    first, last = 2 + 3 * BLOCK_IDS, 2 + 4 * BLOCK_IDS - 3  # the ids of the fourth block
    edges = [edge + step for edge in (first, last) for step in (-1, 0, 1)]
    ranges = [(low, high) for low in [-5, *edges] for high in [*edges, 9999]]
    ranges += [(first + 30, first + 60), (0, 9999), (9999, 10**6), (5, 5)]
    # The entries at both ends of the block are the nearest, wherever they are visible.
    for entry in (6 * CHUNK, 8 * CHUNK - 1):
        assert int(IDS[entry]) in (first, last)
        queries = KEYS[entry] + torch.randn(len(ranges), WIDTH) / 100
        same(*both(kind, queries, torch.tensor(ranges)))


def counting(calls: list[tuple[str, int]]) -> Callable[[IvfShard, int], BlockSearch]:
    """Make blocks that write down how many queries each is asked."""

    def copy(host: IvfShard, device: int) -> BlockSearch:
        search = search_without_selector(host, device)
        name = f"block {sum(1 for kind, _ in calls if kind.startswith('made'))}"
        calls.append(("made", len(host)))

        def counted(queries: Tensor, k: int, effort: int) -> tuple[Tensor, Tensor]:
            calls.append((name, len(queries)))
            return search(queries, k, effort)

        return counted

    return copy


def test_only_blocks_that_nothing_hides_are_searched_on_the_device():
    calls: list[tuple[str, int]] = []
    kind = "ivf_flat"
    coder = IvfShard(choice_of(kind), trained(kind), [])
    parts = [(coder.encode(keys), ids) for keys, ids in PARTS]
    shard = GpuIvfShard(choice_of(kind), trained(kind), parts, device=0, to_gpu=counting(calls))
    assert calls == [("made", 2 * CHUNK)] * 10
    calls.clear()
    # The first query hides blocks 2 and 3 and parts of 1 and 4, the second one nothing.
    hidden = torch.tensor([[BLOCK_IDS + 100, 4 * BLOCK_IDS + 100], [0, 0]])
    queries = KEYS[:2]
    shard.search(queries, hidden, 5, 3, shard.route(queries, 3))
    asked = dict(calls)
    assert [asked[f"block {number}"] for number in range(10)] == [2, 1, 1, 1, 1, 2, 2, 2, 2, 2]


@pytest.mark.parametrize(("k", "effort"), [(7, 3), (3, 7)])
def test_what_the_device_cannot_do_is_done_by_the_host(
    k: int, effort: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(faiss_gpu, "GPU_LIMIT", 5)
    gpu, host = pair("ivf_flat")
    for _, _, _, on_gpu in gpu._blocks:
        assert on_gpu is not None
    blocks = [(first, last, part, None) for first, last, part, _ in gpu._blocks]
    monkeypatch.setattr(gpu, "_blocks", blocks)  # a call of the device would raise
    queries, hidden = KEYS[:4], torch.tensor([[0, 0], [100, 700], [0, 9999], [900, 901]])
    route = host.route(queries, effort)
    same(
        gpu.search(queries, hidden, k, effort, route),
        host.search(queries, hidden, k, effort, route),
    )


def test_holds_every_entry_once_and_knows_its_lists():
    gpu, host = pair("ivf_sq8")
    assert len(gpu) == len(host) == ENTRIES
    assert gpu.max_effort == NLIST
    assert len(gpu._blocks) == 10


def test_an_empty_shard_answers_with_empty_slots():
    kind = "ivf_flat"
    empty = make_shard(kind, [(KEYS[:0], IDS[:0])], WIDTH, trained(kind), on_gpu=True)
    found = empty.search(KEYS[:2], torch.zeros(2, 2).long(), 3, 2, empty.route(KEYS[:2], 2))
    assert len(empty) == 0
    assert found[1].tolist() == [[-1] * 3] * 2
    assert found[0].isinf().all()


def test_refuses_queries_that_are_not_finite():
    gpu, _ = pair("ivf_flat")
    broken = torch.full((1, WIDTH), torch.inf)
    with pytest.raises(ValueError, match="queries must be finite, got 1 of 1 rows"):
        gpu.search(broken, torch.zeros(1, 2).long(), 3, 2, gpu.route(KEYS[:1], 2))


def test_queries_go_to_the_device_in_tiles_that_fit_its_scratch_memory(
    monkeypatch: pytest.MonkeyPatch,
):
    index = make_shard("ivf_flat", PARTS, WIDTH, trained("ivf_flat")).faiss_index  # type: ignore[attr-defined]
    queries = torch.randn(23, WIDTH, generator=torch.Generator().manual_seed(3))
    whole = faiss_gpu.search_in_tiles(index, WIDTH)(queries, 5, 4)
    sizes: list[int] = []

    class Watched:
        nprobe = 0

        def search(self, vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
            sizes.append(len(vectors))
            index.nprobe = self.nprobe
            return index.search(vectors, k)  # type: ignore[no-any-return]

    monkeypatch.setattr(faiss_gpu, "SCRATCH_BYTES", 2 * 7 * 4 * WIDTH * 4)
    tiled = faiss_gpu.search_in_tiles(Watched(), WIDTH)(queries, 5, 4)
    assert sizes == [7, 7, 7, 2]
    assert torch.equal(tiled[1], whole[1])
    settings = faiss.SearchParametersIVF(nprobe=4)
    assert torch.equal(
        whole[1], torch.from_numpy(index.search(queries.numpy(), 5, params=settings)[1])
    )


@pytest.mark.parametrize(
    ("lengths", "largest", "half"),
    [(faiss_gpu.PQ_LENGTHS, 48, False), (faiss_gpu.PQ_LENGTHS, 1, True), ((), 48, None)],
)
def test_product_codes_are_searched_as_gpu_kernels_can(
    monkeypatch: pytest.MonkeyPatch, lengths: tuple[int, ...], largest: int, half: bool | None
):
    """In whole or half precision there, or on the host."""
    host = make_shard("ivf_pq", PARTS, WIDTH, trained("ivf_pq"))
    assert isinstance(host, IvfShard)
    given: list[SimpleNamespace] = []
    monkeypatch.setattr(faiss_gpu, "PQ_LENGTHS", lengths)
    monkeypatch.setattr(faiss_gpu, "LARGEST_WHOLE_PQ", largest)
    stands_in = {
        "GpuClonerOptions": SimpleNamespace,
        "INDICES_64_BIT": 2,
        "index_cpu_to_gpu": lambda _resources, _device, index, options: (
            given.append(options) or index
        ),
    }
    for name, value in stands_in.items():
        monkeypatch.setattr(faiss, name, value, raising=False)
    search = faiss_gpu._copy_to_gpu(None, host, 0)
    assert [options.useFloat16 for options in given] == ([] if half is None else [half])
    assert (search(KEYS[:4], 1, NLIST)[1] >= 0).all()


def test_faiss_for_cpus_has_no_gpu_part():
    if hasattr(faiss, "StandardGpuResources"):
        pytest.skip("it is FAISS for GPUs")
    assert not faiss_gpu.is_there()
