"""Permutations that are computed place by place, and so take no memory however long they are.

A Feistel network over the smallest power of four that is large enough; what falls outside is sent
through it again until it falls inside ("cycle walking": Black and Rogaway 2002, "Ciphers with
arbitrary finite domains"). Own code: libraries that have it shuffle one number a call.
"""

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
_Words = npt.NDArray[np.uint64]

ROUNDS = 10


class Permutation:
    """A pseudorandom order of the numbers below ``size``."""

    def __init__(self, size: int, key: tuple[int, ...]) -> None:
        """Choose an order.

        Args:
            size: How many numbers, at least 1.
            key: Not negative; another key, another order.
        """
        assert size > 0
        self.size = size
        self._half = np.uint64(max(1, (max(1, size - 1).bit_length() + 1) // 2))
        self._mask = np.uint64((1 << int(self._half)) - 1)
        # The length too: zeros at the end make no other seed.
        seed = np.random.SeedSequence([len(key), *key])
        self._keys = seed.generate_state(ROUNDS, np.uint64)

    def __getitem__(self, places: Ints) -> Ints:
        """The numbers at some places. Shape (...) in and out; places in [0, size)."""
        numbers = self._once(np.asarray(places).astype(np.uint64))
        outside = numbers >= self.size
        while outside.any():
            numbers[outside] = self._once(numbers[outside])
            outside = numbers >= self.size
        return numbers.astype(np.int64)

    def _once(self, numbers: _Words) -> _Words:
        left, right = numbers >> self._half, numbers & self._mask
        for key in self._keys:
            left, right = right, left ^ (_mixed(right ^ key) & self._mask)
        return (left << self._half) | right


def _mixed(words: _Words) -> _Words:
    """Spread every bit over all. Source: SplitMix64's finaliser (Steele et al. 2014)."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
