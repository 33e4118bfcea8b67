"""The order in which windows of several sources are drawn; any place of it is computed alone.

An epoch has as many draws as there are training windows. Each source gets its share of them, to
the draw; of a source's windows each comes as often in an epoch as any other, give or take once.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dist_train.data.permutation import Ints, Permutation


class Mixture(NamedTuple):
    """How sources are mixed."""

    counts: Sequence[int]
    """Training windows of each source, which are numbered source after source."""

    shares: Sequence[float]
    """How often each is drawn; they sum to 1."""


def shares(counts: Sequence[int], weights: Sequence[float], temperature: float) -> list[float]:
    """How often each source is drawn.

    Args:
        counts: Training windows of each source; 0: never drawn.
        weights: Factor of each.
        temperature: At least 1; 1: in proportion to the windows, large: alike.

    Returns:
        Shares that sum to 1.

    Source: Devlin 2018, multilingual BERT; Raffel et al. 2020, section 3.5.2.
    """
    raw = np.array(
        [
            weight * count ** (1 / temperature) if count else 0.0
            for count, weight in zip(counts, weights, strict=True)
        ]
    )
    return [float(share) for share in raw / raw.sum()]


class MixtureOrder:
    """One epoch's draws. Nothing is kept but a few numbers for each source."""

    def __init__(self, mixture: Mixture, seed: int, epoch: int) -> None:
        """Lay out the epoch.

        Args:
            mixture: Sizes and shares of the sources.
            seed: Of the run.
            epoch: From 0.
        """
        self._counts = [int(count) for count in mixture.counts]
        self._first = np.concatenate([[0], np.cumsum(self._counts)]).astype(np.int64)
        size = int(self._first[-1])
        self._ends = np.rint(np.cumsum(mixture.shares) * size).astype(np.int64)
        self._draws = Permutation(size, (seed, epoch, 0))
        self._key = (seed, epoch)

    def __len__(self) -> int:
        return self._draws.size

    def __getitem__(self, places: Ints) -> Ints:
        """Window numbers of some draws of the epoch, each in [0, len). Shape (...) in and out."""
        draws = self._draws[places]
        source = np.searchsorted(self._ends, draws, side="right")
        windows = np.empty_like(draws)
        for number in np.unique(source):
            here = source == number
            begin = self._ends[number - 1] if number else 0
            windows[here] = self._first[number] + self._within(int(number), draws[here] - begin)
        return windows

    def _within(self, source: int, draws: Ints) -> Ints:
        """Windows of one source by the number of the draw, round after round."""
        count = self._counts[source]
        rounds, place = np.divmod(draws, count)
        windows = np.empty_like(draws)
        for number in np.unique(rounds):
            here = rounds == number
            order = Permutation(count, (*self._key, 1 + source, int(number)))
            windows[here] = order[place[here]]
        return windows
