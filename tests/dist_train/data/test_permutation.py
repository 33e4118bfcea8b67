"""dist_train/data/permutation.py: every number once, in an order that its key decides."""

import tracemalloc

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dist_train.data.permutation import Permutation


@given(size=st.integers(1, 3000), key=st.lists(st.integers(0, 2**40), min_size=1, max_size=4))
def test_every_number_comes_once(size: int, key: list[int]):
    order = Permutation(size, tuple(key))[np.arange(size)]
    assert sorted(order.tolist()) == list(range(size))


@given(st.integers(2, 10**12), st.integers(0, 10**6))
def test_a_place_alone_is_what_it_is_among_others(size: int, seed: int):
    order = Permutation(size, (seed,))
    places = np.random.default_rng(seed).integers(size, size=(3, 4))
    together = order[places]
    assert together.shape == (3, 4)
    assert together.min() >= 0
    assert together.max() < size
    alone = [int(order[np.array([place])][0]) for place in places.ravel()]
    assert together.ravel().tolist() == alone


def test_keys_make_orders_that_have_nothing_in_common():
    places = np.arange(4096)
    orders = [Permutation(4096, key)[places] for key in ((0,), (1,), (0, 0), (0, 1))]
    for number, first in enumerate(orders):
        for second in [places, *orders[number + 1 :]]:
            assert (first == second).sum() < 10  # one on average
            assert abs(np.corrcoef(first, second)[0, 1]) < 0.08  # five standard deviations


def test_each_number_is_as_likely_at_each_place():
    size, keys = 20, 4000
    counts = np.zeros((size, size))
    for key in range(keys):
        counts[np.arange(size), Permutation(size, (key, 3))[np.arange(size)]] += 1
    expected = keys / size
    chi_square = ((counts - expected) ** 2 / expected).sum()
    freedom = (size - 1) ** 2
    assert abs(chi_square - freedom) < 5 * np.sqrt(2 * freedom)


def test_no_memory_is_taken_for_the_whole():
    tracemalloc.start()
    order = Permutation(10**9, (1,))
    order[np.arange(10**9 - 64, 10**9)]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1e6
