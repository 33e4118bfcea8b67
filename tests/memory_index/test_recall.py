"""memory_index/recall.py: what is measured is what is found, and the bound is reached."""

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from memory_index import recall as recall_module
from memory_index.exact_shard import ExactShard
from memory_index.groups import RankGroup
from memory_index.recall import (
    AT,
    NUM_QUERIES,
    SampleQueries,
    choose_effort,
    measure_recall,
    merge_nearest,
    nearest_in_chunk,
    sample_ids,
)
from memory_index.sharded_index import ShardedIndex
from tests.helpers.ranks import run_ranks
from tests.memory_index.brute_force import nearest_by_loop, recall, same
from tests.memory_index.shards import make_index, make_shard, parts_of, train

WIDTH, ENTRIES = 8, 3000
KEYS = torch.randn(ENTRIES, WIDTH, generator=torch.Generator().manual_seed(0))
IDS = torch.arange(ENTRIES)
# Odd in number, so that ranks have different shares; the last one sees three entries, one none.
SAMPLE_IDS = torch.arange(0, ENTRIES, 71)
SAMPLE = SampleQueries(
    keys=KEYS[SAMPLE_IDS],
    hidden=torch.cat(
        [
            torch.stack([SAMPLE_IDS - 20, SAMPLE_IDS + 21], dim=1)[:-2],
            torch.tensor([[0, ENTRIES - 3], [0, ENTRIES]]),
        ]
    ),
)
TRUTH = ExactShard(KEYS, IDS).search(SAMPLE.keys, SAMPLE.hidden, AT)


def index_of(kind: str, nlist: int, rank: int = 0, ranks: int = 1) -> ShardedIndex:
    group = RankGroup(dist.group.WORLD if ranks > 1 else None, range(ranks), rank)
    trained = train(kind, KEYS, nlist)
    shard = make_shard(kind, parts_of(KEYS, IDS, rank, ranks), WIDTH, trained)
    return make_index(kind, shard, group, KEYS, IDS, effort=0)


@pytest.mark.parametrize(
    ("entries", "size"),
    [(0, 0), (1, 1), (100, 100), (NUM_QUERIES, NUM_QUERIES), (9999, NUM_QUERIES)],
)
def test_the_sample_is_even_and_repeats_nothing(entries: int, size: int):
    ids = torch.arange(entries) * 3
    sample = sample_ids(ids)
    assert len(sample) == size
    assert set(sample.tolist()) <= set(ids.tolist())
    if size > 1:
        assert (sample[0], sample[-1]) == (ids[0], ids[-1])
        steps = sample.diff()
        assert steps.max() - steps.min() <= 3


@pytest.mark.parametrize("chunks", [1, 2, 7])
def test_the_nearest_of_all_chunks_are_the_nearest_of_the_bank(chunks: int):
    parts = [
        nearest_in_chunk(KEYS[part], IDS[part], SAMPLE)
        for part in torch.arange(ENTRIES).chunk(chunks)
    ]
    merged = merge_nearest(parts, len(SAMPLE.keys))
    same(merged, nearest_by_loop(KEYS, IDS, SAMPLE.keys, SAMPLE.hidden, AT))


def test_no_chunk_has_no_neighbours():
    distances, ids = merge_nearest([], 3)
    assert ids.tolist() == [[-1] * AT] * 3
    assert distances.isinf().all()


@pytest.mark.parametrize(("kind", "nlist"), [("ivf_flat", 50), ("ivf_pq", 50), ("hnsw", 0)])
def test_the_curve_says_what_a_search_finds(kind: str, nlist: int):
    index = index_of(kind, nlist)
    curve = measure_recall(index, SAMPLE, TRUTH)
    assert list(curve) == sorted(curve)
    assert list(curve)[:4] == [1, 2, 4, 8]
    assert max(curve) <= index.shard.max_effort
    for effort, share in curve.items():
        index.effort = effort
        found = index.search(SAMPLE.keys, SAMPLE.hidden, AT)[1]
        assert share == pytest.approx(recall(found, TRUTH[1]), abs=1e-6)
    assert curve[1] < max(curve.values())
    assert max(curve.values()) > 0.95


def test_measuring_ends_where_nothing_more_can_be_found(monkeypatch: pytest.MonkeyPatch):
    index = index_of("ivf_flat", 50)
    whole = measure_recall(index, SAMPLE, TRUTH)
    assert whole[max(whole)] >= recall_module.ENOUGH
    assert all(
        share < recall_module.ENOUGH for effort, share in whole.items() if effort < max(whole)
    )
    monkeypatch.setattr(recall_module, "ENOUGH", 2.0)  # never
    assert max(measure_recall(index, SAMPLE, TRUTH)) == 50  # all lists
    monkeypatch.setattr(recall_module, "LARGEST_EFFORT", 6)
    assert list(measure_recall(index, SAMPLE, TRUTH)) == [1, 2, 4, 8]


def test_a_bank_whose_sample_sees_nothing_has_a_curve():
    index = index_of("ivf_flat", 50)
    nothing = torch.full((len(SAMPLE.keys), AT), torch.inf), torch.full((len(SAMPLE.keys), AT), -1)
    assert set(measure_recall(index, SAMPLE, nothing).values()) == {0.0}


def measure_together(rank: int, world_size: int) -> None:
    alone = measure_recall(index_of("ivf_flat", 50), SAMPLE, TRUTH)
    index = index_of("ivf_flat", 50, rank, world_size)
    chunks = parts_of(KEYS, IDS, rank, world_size)
    mine = merge_nearest([nearest_in_chunk(*chunk, SAMPLE) for chunk in chunks], len(SAMPLE.keys))
    curve = measure_recall(index, SAMPLE, mine)
    assert curve == pytest.approx(alone, abs=1e-6)
    assert index.group.gather_objects(curve) == [curve] * world_size


@pytest.mark.ranks
def test_ranks_measure_together_what_one_would():
    run_ranks(measure_together, 3)  # three chunks of entries


@settings(deadline=None)
@given(
    curve=st.dictionaries(st.integers(1, 1024), st.floats(0, 1), min_size=1),
    bound=st.floats(0.01, 1),
)
def test_the_smallest_effort_that_reaches_the_bound_with_a_margin_is_chosen(
    curve: dict[int, float], bound: float
):
    aim = bound + recall_module.MARGIN * (1 - bound)
    chosen = choose_effort(curve, bound)
    reaching = [effort for effort, share in curve.items() if share >= aim]
    if reaching:
        assert chosen == min(reaching)
    else:  # none does: the best, and the cheapest of equals
        best = max(curve.values())
        assert chosen == min(effort for effort, share in curve.items() if share == best)


def test_an_effort_just_beyond_the_bound_is_too_near_to_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(recall_module, "MARGIN", 0.5)
    curve = {1: 0.5, 2: 0.97, 4: 0.982, 8: 0.991, 16: 0.999}
    assert choose_effort(curve, 0.98) == 8
    assert choose_effort(curve, 0.3) == 2
    assert choose_effort(curve, 1.0) == 16
    assert choose_effort({1: 0.2, 2: 0.4, 4: 0.4}, 0.98) == 2  # trying harder gains nothing
