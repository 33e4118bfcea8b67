"""memory_index/index_choice.py: a table of banks and machines, and what each gets."""

import faiss
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from memory_index.config import BankConfig
from memory_index.index_choice import bytes_per_entry, choose_index, index_gib, pq_bytes
from tests.memory_index.shards import IVF_KINDS, KINDS, choice_of, make_shard, train

SMALL, LARGE, HUGE = 100_000, 2_000_000, 40_000_000
# 256 wide: 1 KiB per float key, 256 bytes per sq8 code, 64 bytes per pq code; and 8 of an id.


def choose(
    entries: int, ranks: int = 1, nodes: int = 1, on_gpu: bool = False, **settings: object
) -> tuple[str, str]:
    config = BankConfig(**settings)  # type: ignore[arg-type]
    choice = choose_index(
        config, entries, 256, on_gpu=on_gpu, ranks_per_node=ranks, num_nodes=nodes
    )
    return choice.kind, choice.group


@pytest.mark.parametrize(
    ("entries", "on_gpu", "memory_gib", "ranks", "kind"),
    [
        (0, False, 4.0, 1, "flat"),
        (SMALL, False, 4.0, 1, "flat"),
        (SMALL, True, 4.0, 1, "exact"),
        (SMALL + 1, False, 4.0, 1, "ivf_flat"),
        (SMALL + 1, True, 4.0, 1, "ivf_flat"),
        (LARGE, False, 4.0, 1, "ivf_flat"),  # 1.9 GiB
        (LARGE, False, 1.0, 1, "ivf_sq8"),  # 0.49 GiB
        (LARGE, False, 0.25, 1, "ivf_pq"),  # 0.13 GiB
        (LARGE, False, 1.0, 4, "ivf_flat"),  # over the ranks
        (HUGE, False, 4.0, 1, "ivf_pq"),
        (HUGE, False, 4.0, 4, "ivf_sq8"),  # 9.8 GiB
        (HUGE, False, 4.0, 16, "ivf_flat"),  # 38 GiB
    ],
)
def test_auto_takes_the_most_exact_kind_that_fits(
    entries: int, on_gpu: bool, memory_gib: float, ranks: int, kind: str
):
    assert choose(entries, ranks, on_gpu=on_gpu, memory_gib=memory_gib)[0] == kind


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("entries", [10, HUGE])
def test_a_kind_that_is_asked_for_is_had(kind: str, entries: int):
    assert choose(entries, index=kind, memory_gib=100.0)[0] == kind


@pytest.mark.parametrize(
    ("entries", "ranks", "nodes", "group"),
    [
        (HUGE, 1, 1, "rank"),
        (SMALL, 8, 4, "rank"),  # 0.10 GiB: a copy costs nothing
        (LARGE, 8, 1, "world"),  # one node: its ranks are the world
        (LARGE, 8, 4, "node"),  # 1.9 GiB of the node's 32
        (LARGE, 1, 4, "node"),  # 1.9 GiB of its 4
        (HUGE, 2, 8, "world"),  # 38 GiB do not fit the node's 8
        (HUGE, 16, 2, "node"),  # but its 64
    ],
)
def test_auto_shares_a_bank_no_wider_than_it_must(entries: int, ranks: int, nodes: int, group: str):
    assert choose(entries, ranks, nodes)[1] == group


@pytest.mark.parametrize("group", ["rank", "node", "world"])
def test_the_sharing_that_is_asked_for_is_had(group: str):
    assert choose(SMALL, 4, 2, shard_group=group)[1] == group


@pytest.mark.parametrize(
    ("entries", "nlist", "expected"),
    [
        (1_000_000, None, 4000),  # 4 sqrt(M)
        (1_000_000, 77, 77),
        (10_000, None, 250),  # 40 points per list
        (10_000, 1000, 250),
        (39, None, 1),
        (0, None, 1),
    ],
)
def test_lists_have_enough_points_to_be_trained(entries: int, nlist: int | None, expected: int):
    config = BankConfig(index="ivf_flat", nlist=nlist)
    choice = choose_index(config, entries, 8, on_gpu=False, ranks_per_node=1, num_nodes=1)
    assert choice.nlist == expected
    lowered = nlist is not None and expected < nlist
    assert (f"bank.nlist={nlist} lowered to {expected}" in choice.reason) == lowered


@pytest.mark.parametrize("kind", ["exact", "flat", "hnsw"])
def test_only_ivf_kinds_have_lists(kind: str):
    config = BankConfig(index=kind, nlist=50)  # type: ignore[arg-type]
    choice = choose_index(config, 10**6, 8, on_gpu=False, ranks_per_node=1, num_nodes=1)
    assert choice.nlist == 0


@pytest.mark.parametrize(
    ("settings", "ranks", "nodes", "gib"),
    [
        ({"index": "flat"}, 1, 1, 38.4),
        ({"index": "flat", "shard_group": "rank"}, 8, 2, 38.4),
        ({"index": "flat", "shard_group": "node"}, 8, 2, 4.8),
        ({"index": "flat", "shard_group": "world"}, 4, 2, 4.8),
        ({"memory_gib": 1.0}, 2, 1, 1.3),  # ivf_pq, and still too large
    ],
)
def test_refuses_an_index_that_does_not_fit_its_ranks(
    settings: dict[str, object], ranks: int, nodes: int, gib: float
):
    limit = settings.get("memory_gib", 4.0)
    message = rf"bank\.memory_gib={limit:g}: .* of 40,000,000 entries takes {gib} GiB on each rank"
    with pytest.raises(ValueError, match=message):
        choose(HUGE, ranks, nodes, **settings)  # type: ignore[arg-type]


def test_an_index_that_just_fits_is_not_refused():
    assert choose(HUGE, 5, 2, index="flat", shard_group="world") == ("flat", "world")
    size = index_gib("flat", HUGE, 256)
    assert choose(HUGE, index="flat", memory_gib=size) == ("flat", "rank")
    with pytest.raises(ValueError, match="Raise it, share the index between more ranks"):
        choose(HUGE, index="flat", memory_gib=size * 0.999)


def test_the_reason_names_kind_sharing_and_size():
    config = BankConfig(memory_gib=2.0)
    choice = choose_index(config, LARGE, 256, on_gpu=False, ranks_per_node=2, num_nodes=2)
    assert choice.reason == (
        "ivf_flat, a copy on every node: 2,000,000 entries take 1.92 GiB of 8 GiB "
        "(bank.memory_gib on 4 ranks)"
    )


def test_exact_kinds_and_kinds_that_keep_keys_say_so():
    assert [kind for kind in KINDS if choice_of(kind).is_exact] == ["exact", "flat"]
    kept = [kind for kind in KINDS if choice_of(kind).stores_keys]
    assert kept == ["exact", "flat", "ivf_flat", "hnsw"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [8, 9])
def test_bytes_per_entry_are_those_of_the_index_itself(kind: str, width: int):
    keys = torch.randn(400, width, generator=torch.Generator().manual_seed(0))
    shard = make_shard(kind, [(keys, torch.arange(400))], width, train(kind, keys))
    if kind in IVF_KINDS:
        actual = shard.faiss_index.code_size  # type: ignore[attr-defined]
    elif kind == "hnsw":
        graph = shard._shard._graph  # type: ignore[attr-defined]
        links = faiss.vector_to_array(graph.hnsw.neighbors).nbytes / 400
        actual = pytest.approx(4 * width + links, rel=0.05)  # a few nodes have upper levels
    else:
        actual = 4 * width
    assert bytes_per_entry(kind, width) == actual
    assert index_gib(kind, 2**30, width) == bytes_per_entry(kind, width) + 8


@settings(deadline=None)
@given(width=st.integers(1, 1000))
def test_a_product_quantiser_splits_the_width_evenly(width: int):
    assert width % pq_bytes(width) == 0
    assert 1 <= width // pq_bytes(width) <= 4
