"""memory_index/recall.py: what is measured equals a count by hand, and the bound is kept."""

import pytest
import torch

from memory_index.groups import RankGroup
from memory_index.recall import (
    AT,
    choose_effort,
    measure_recall,
    merge_nearest,
    nearest_in_chunk,
    sample_ids,
)
from tests.memory_index.small_banks import Source
from tests.memory_index.brute_force import nearest_by_loop, recall, same
from tests.memory_index.real_windows import RealWindows
from tests.memory_index.shards import make_index, make_shard, parts_of, train


def test_the_sample_is_even_and_holds_both_ends():
    ids = torch.arange(10_000) * 3
    chosen = sample_ids(ids)
    assert len(chosen) == 256
    assert (chosen[0], chosen[-1]) == (0, 29_997)
    assert int(chosen.diff().max()) - int(chosen.diff().min()) <= 3
    assert torch.equal(sample_ids(ids[:9]), ids[:9])
    assert len(sample_ids(ids[:0])) == 0


def test_the_nearest_of_all_chunks_are_the_true_ones():
    source = Source()
    sample = source.sample
    parts = [
        nearest_in_chunk(source.keys[part], source.ids[part], sample)
        for part in (slice(0, 700), slice(700, 710), slice(710, None))
    ]
    truth = nearest_by_loop(source.keys, source.ids, sample.keys, sample.hidden, AT)
    same(merge_nearest(parts, len(sample.keys)), truth)


def test_recall_is_the_share_found_at_each_effort():
    source = Source()
    sample = source.sample
    trained = train("ivf_flat", source.keys, 20)
    shard = make_shard("ivf_flat", parts_of(source.keys, source.ids), 8, trained)
    index = make_index("ivf_flat", shard, RankGroup(), source.keys, source.ids, effort=0)
    truth = nearest_by_loop(source.keys, source.ids, sample.keys, sample.hidden, AT)
    curve = measure_recall(index, sample, truth)
    assert list(curve) == sorted(curve)
    for effort, value in curve.items():
        index.effort = effort
        found = index.search(sample.keys, sample.hidden, AT)[1]
        assert value == pytest.approx(recall(found, truth[1]))
    assert max(curve.values()) >= 0.999
    assert min(curve.values()) < 0.9


def test_the_smallest_effort_beyond_the_bound_is_chosen_with_a_margin():
    curve = {1: 0.5, 2: 0.97, 4: 0.982, 8: 0.986, 16: 0.999}
    assert choose_effort(curve, 0.98) == 8  # 0.982 is too near the bound
    assert choose_effort(curve, 0.3) == 2
    assert choose_effort(curve, 1.0) == 16
    assert choose_effort({1: 0.2, 2: 0.4, 4: 0.4}, 0.98) == 2  # trying harder gains nothing


@pytest.mark.parametrize("key", ["anchored_windows", "dual_windows"])
@pytest.mark.parametrize(
    ("kind", "bound"), [("ivf_flat", 0.98), ("ivf_sq8", 0.98), ("ivf_pq", 0.95), ("hnsw", 0.95)]
)
def test_the_bound_holds_on_other_windows_than_those_it_was_tuned_on(
    key: str, kind: str, bound: float, request: pytest.FixtureRequest
):
    windows: RealWindows = request.getfixturevalue(key)
    parts = parts_of(windows.keys, windows.ids)
    shard = make_shard(kind, parts, windows.keys.shape[1], train(kind, windows.keys, 400))
    index = make_index(kind, shard, RankGroup(), windows.keys, windows.ids, effort=0)
    nearest = [nearest_in_chunk(keys, ids, windows.sample) for keys, ids in parts]
    merged = merge_nearest(nearest, len(windows.sample.keys))
    curve = measure_recall(index, windows.sample, merged)
    index.effort = choose_effort(curve, bound)
    found = index.search(windows.queries, windows.hidden, AT)[1]
    assert recall(found, windows.truth) >= bound
