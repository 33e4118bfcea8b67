"""dist_train/data/sampler.py: the same global batches on any number of ranks."""

import json
from collections import Counter
from itertools import chain

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from dist_train.data.mixture import Mixture
from dist_train.data.sampler import EvaluationSampler, GlobalBatchSampler

MIXTURE = Mixture([30, 70], [0.6, 0.4])


def global_batches(sampler: GlobalBatchSampler) -> list[list[int]]:
    """This rank's windows of each step."""
    micro, steps = list(sampler), sampler.accumulation_steps
    assert len(micro) == len(sampler)
    assert all(len(batch) == sampler.micro_batch_size for batch in micro)
    return [list(chain.from_iterable(micro[i : i + steps])) for i in range(0, len(micro), steps)]


@given(
    num_windows=st.integers(12, 100),
    world_size=st.sampled_from([1, 2, 3, 4, 6]),
    micro=st.sampled_from([1, 2, 3]),
    epoch=st.integers(0, 3),
)
def test_all_ranks_together_see_what_one_rank_sees(
    num_windows: int, world_size: int, micro: int, epoch: int
):
    assume(12 // world_size % micro == 0)
    alone = global_batches(GlobalBatchSampler(num_windows, 12, 12, 0, 1, seed=7, epoch=epoch))
    ranks = [
        global_batches(GlobalBatchSampler(num_windows, 12, micro, rank, world_size, 7, epoch))
        for rank in range(world_size)
    ]
    together = [list(chain.from_iterable(shares)) for shares in zip(*ranks, strict=True)]
    assert together == alone
    seen = list(chain.from_iterable(alone))
    assert len(seen) == len(set(seen)) == num_windows // 12 * 12
    assert set(seen) <= set(range(num_windows))


def test_epochs_and_seeds_differ_and_repeat():
    def order(seed: int, epoch: int) -> list[list[int]]:
        return list(GlobalBatchSampler(50, 10, 5, 0, 1, seed, epoch))

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(1, 1)
    assert order(1, 0) != order(2, 0)


def test_a_position_continues_as_if_nothing_had_happened():
    whole = GlobalBatchSampler(100, 12, 3, 1, 2, seed=0, epoch=2)
    saved = GlobalBatchSampler(100, 12, 3, 1, 2, seed=0)
    saved.set_position(2, 5)
    resumed = GlobalBatchSampler(100, 12, 3, 1, 2, seed=0)
    resumed.load_state_dict(saved.state_dict())
    assert list(resumed) == list(whole)[5 * 2 :]
    assert len(resumed) == 3 * 2
    assert list(resumed) == list(whole)[5 * 2 :], "iterating must not move the position"


def test_a_position_is_good_for_another_number_of_ranks():
    saved = GlobalBatchSampler(100, 12, 3, 0, 1, seed=0, epoch=1, start_step=4)
    resumed = [GlobalBatchSampler(100, 12, 2, rank, 3, seed=0) for rank in range(3)]
    for sampler in resumed:
        sampler.load_state_dict(saved.state_dict())
    first_step = [list(sampler)[: sampler.accumulation_steps] for sampler in resumed]
    flat = chain.from_iterable(chain.from_iterable(first_step))
    assert list(flat) == list(chain.from_iterable(list(saved)[:4]))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [((100, 10, 1, 0, 3), r"train.batch_size=10 cannot be shared by world_size=3"),
     ((100, 12, 4, 0, 2), r"train.micro_batch_size=4 does not divide the 6 .*world_size=2"),
     ((9, 10, 5, 0, 1), r"train.batch_size=10 is more than the 9 training windows"),
     ((100, 0, 1, 0, 1), r"train.batch_size=0 .*must be at least 1"),
     ((100, 10, 5, 2, 2), r"rank must be in \[0, world_size=2\), got 2")],
)  # fmt: skip
def test_sizes_that_do_not_fit_are_refused(sizes: tuple[int, int, int, int, int], message: str):
    with pytest.raises(ValueError, match=message):
        GlobalBatchSampler(*sizes, seed=0)


def test_a_negative_seed_is_refused():
    with pytest.raises(ValueError, match=r"train.seed must not be negative, got -1"):
        GlobalBatchSampler(10, 2, 1, 0, 1, seed=-1)


def test_a_position_outside_the_epoch_is_refused():
    sampler = GlobalBatchSampler(100, 12, 3, 0, 1, seed=0)
    sampler.set_position(0, 8)
    assert list(sampler) == []
    with pytest.raises(ValueError, match=r"step in \[0, 8\], got epoch 0, step 9"):
        sampler.set_position(0, 9)


@pytest.mark.parametrize(
    ("key", "name"),
    [("seed", "train.seed"), ("num_windows", "number of training windows"),
     ("global_batch_size", "train.batch_size")],
)  # fmt: skip
def test_a_position_of_another_order_is_refused(key: str, name: str):
    sampler = GlobalBatchSampler(100, 12, 3, 0, 1, seed=0)
    with pytest.raises(ValueError, match=f"{name} is .*saved with 999"):
        sampler.load_state_dict(sampler.state_dict() | {key: 999})


@pytest.mark.parametrize("batch_size", [1, 7, 32, 2048])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("num_windows", [1, 3, 100, 129])
def test_every_window_is_scored_once_in_as_many_batches_on_every_rank(
    num_windows: int, batch_size: int, world_size: int
):
    ranks = [
        list(EvaluationSampler(num_windows, batch_size, rank, world_size))
        for rank in range(world_size)
    ]
    counted = Counter(
        window for batches in ranks for ids, valid in batches for window in ids[:valid]
    )
    assert counted == Counter(range(num_windows))
    shapes = [[len(ids) for ids, _ in batches] for batches in ranks]
    assert all(sizes == shapes[0] for sizes in shapes), "ranks must run the same forwards"
    assert max(shapes[0]) <= batch_size
    assert len(EvaluationSampler(num_windows, batch_size, 0, world_size)) == len(shapes[0])
    repeats = [window for batches in ranks for ids, _ in batches for window in ids]
    assert set(repeats) <= set(range(num_windows))


def test_shares_are_contiguous():
    batches = [list(EvaluationSampler(10, 4, rank, 3)) for rank in range(3)]
    assert batches[0] == [([0, 1, 2, 3], 4)]
    assert batches[1] == [([4, 5, 6, 6], 3)]
    assert batches[2] == [([7, 8, 9, 9], 3)]


def test_an_evaluation_of_nothing_is_refused():
    with pytest.raises(ValueError, match="must be at least 1, got 0 and 4"):
        EvaluationSampler(0, 4, 0, 1)
    with pytest.raises(ValueError, match="must be at least 1, got 4 and 0"):
        EvaluationSampler(4, 0, 0, 1)
    with pytest.raises(ValueError, match=r"world_size=1\), got 1"):
        EvaluationSampler(4, 4, 1, 1)


@given(world_size=st.sampled_from([1, 2, 3, 4, 6]), step=st.integers(0, 8), epoch=st.integers(0, 3))
def test_a_mixture_goes_on_anywhere_on_any_number_of_ranks(world_size: int, step: int, epoch: int):
    whole = GlobalBatchSampler(100, 12, 12, 0, 1, 7, epoch, mixture=MIXTURE)
    saved = GlobalBatchSampler(100, 12, 12, 0, 1, 7, mixture=MIXTURE)
    saved.set_position(epoch, step)
    ranks = []
    for rank in range(world_size):
        resumed = GlobalBatchSampler(100, 12, 1, rank, world_size, 7, mixture=MIXTURE)
        resumed.load_state_dict(json.loads(json.dumps(saved.state_dict())))
        ranks.append(global_batches(resumed))
    together = [list(chain.from_iterable(parts)) for parts in zip(*ranks, strict=True)]
    assert together == global_batches(whole)[step:]


def test_a_position_in_another_mixture_is_refused():
    saved = GlobalBatchSampler(100, 12, 12, 0, 1, 7, mixture=MIXTURE).state_dict()
    for other in (None, Mixture([30, 70], [0.5, 0.5]), Mixture([40, 60], [0.6, 0.4])):
        sampler = GlobalBatchSampler(100, 12, 12, 0, 1, 7, mixture=other)
        with pytest.raises(
            ValueError, match=r"data\.sources, data\.temperature: windows and shares"
        ):
            sampler.load_state_dict(saved)


def test_the_order_of_one_source_is_the_one_it_always_was():
    first = next(iter(GlobalBatchSampler(1000, 8, 8, 0, 1, 2021)))
    assert first == [int(one) for one in np.random.default_rng((2021, 0)).permutation(1000)[:8]]
