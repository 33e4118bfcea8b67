"""dist_train/data/mixture.py: shares kept to the draw, windows of a source equally often."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dist_train.data.mixture import Mixture, MixtureOrder, shares


def test_shares_follow_sizes_weights_and_temperature():
    assert shares([100, 300], [1, 1], 1) == [0.25, 0.75]
    assert shares([100, 300], [3, 1], 1) == [0.5, 0.5]
    assert shares([100, 900], [1, 1], 2) == pytest.approx([10 / 40, 30 / 40])
    assert shares([100, 10**9], [1, 1], 1e9) == pytest.approx([0.5, 0.5])
    assert shares([100, 0, 100], [1, 50, 1], 4) == [0.5, 0.0, 0.5]


def test_in_proportion_to_their_windows_every_window_comes_once():
    mixture = Mixture([7, 0, 50, 1], shares([7, 0, 50, 1], [1] * 4, 1))
    order = MixtureOrder(mixture, seed=3, epoch=1)
    assert len(order) == 58
    assert sorted(order[np.arange(58)].tolist()) == list(range(58))


@given(
    counts=st.lists(st.integers(0, 60), min_size=1, max_size=5).filter(any),
    weights=st.lists(st.floats(0.1, 10), min_size=5, max_size=5),
    temperature=st.sampled_from([1.0, 2.0, 100.0]),
    epoch=st.integers(0, 5),
)
def test_every_source_gets_its_share_in_rounds(
    counts: list[int], weights: list[float], temperature: float, epoch: int
):
    mixed = shares(counts, weights[: len(counts)], temperature)
    size = sum(counts)
    drawn = MixtureOrder(Mixture(counts, mixed), 0, epoch)[np.arange(size)]
    first = np.concatenate([[0], np.cumsum(counts)])
    for source, (count, share) in enumerate(zip(counts, mixed, strict=True)):
        mine = drawn[(drawn >= first[source]) & (drawn < first[source + 1])]
        assert abs(len(mine) - share * size) <= 1
        if not count:
            continue
        times = Counter(mine.tolist())
        rounds, rest = divmod(len(mine), count)
        assert all(times[window] in (rounds, rounds + 1) for window in range(*first[source:][:2]))
        assert sum(times[window] == rounds + 1 for window in times) == (rest or 0)


def test_sources_are_mixed_evenly_over_the_epoch():
    counts = [10_000, 10_000]
    order = MixtureOrder(Mixture(counts, [0.5, 0.5]), 0, 0)
    firsts = (order[np.arange(20_000)] < 10_000).reshape(20, 1000).sum(axis=1)
    assert abs(firsts - 500).max() < 5 * np.sqrt(250)


def test_epochs_and_seeds_have_orders_of_their_own():
    mixture, places = Mixture([500, 500], [0.3, 0.7]), np.arange(1000)
    orders = [MixtureOrder(mixture, *key)[places].tolist() for key in ((0, 0), (0, 1), (1, 0))]
    assert orders[0] == MixtureOrder(mixture, 0, 0)[places].tolist()
    assert orders[0] != orders[1] != orders[2] != orders[0]
