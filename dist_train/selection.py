"""Whether what is better on validation is so by more than chance: the one-standard-error rule.

Shape legend (this file):
    W  windows of the split
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, stdtrit

from dist_train.config import Selection
from dist_train.data.windows import ForecastData, WindowSet

FEWEST_BLOCKS = 2
"""With one block there is no spread to judge a gain by."""

MOST = 1e9
"""Standard errors that a gain is taken to be where every block has the very same."""


def block_errors(errors: NDArray[np.float64], windows: WindowSet) -> list[float]:
    """Average the errors of a split over blocks of time, each at least a horizon long.

    Windows closer than a horizon forecast the same steps, so their errors go up and down together,
    and those of all series do at one time, for which the same row is taken here: the blocks are
    what can be counted as observations.

    Args:
        errors: Mean squared error of each window. Shape (W,).
        windows: The windows of the split.

    Returns:
        One mean for each block, in the order of time, of at least as many starts as a horizon has;
        a split shorter than two horizons is one block.
    """
    _, starts_W = windows.locate_batch(np.arange(len(windows)))
    first = int(starts_W.min())
    span = int(starts_W.max()) - first + 1
    count = max(1, span // windows.pred_len)
    block_W = (starts_W - first) * count // span
    sums, sizes = np.bincount(block_W, weights=errors), np.bincount(block_W)
    return [float(mean) for mean in sums[sizes > 0] / sizes[sizes > 0]]


def blocks_of_source(
    errors: NDArray[np.float64], data: ForecastData, split: str, source: int
) -> list[float]:
    """:func:`block_errors` of the windows of one source alone, whose rows share a clock.

    Args:
        errors: Mean squared error of each window of the split. Shape (W,).
        data: The series.
        split: Key of ``data.windows``.
        source: Number of the source.
    """
    windows, part = data.windows[split], data.series_of_sources[source]
    return block_errors(errors[windows.ids_of(part)], windows.of_series(part))


def selection_blocks(errors: NDArray[np.float64], data: ForecastData, split: str) -> list[float]:
    """The blocks of every source that is trained on, one source's after the other's."""
    return [
        block
        for source in data.trained_sources
        for block in blocks_of_source(errors, data, split, source)
    ]


def gain_in_standard_errors(simple: Sequence[float], other: Sequence[float]) -> float:
    """Return how many of its standard errors the second is better by; 0 where nobody can tell.

    Args:
        simple: Errors of the simpler forecaster, of :func:`block_errors`.
        other: Those of the one that would take its place, on the same blocks.

    Source: Diebold and Mariano 1995, with the variance of non-overlapping batch means.
    """
    gains = np.asarray(simple, dtype=np.float64) - np.asarray(other, dtype=np.float64)
    if len(gains) < FEWEST_BLOCKS:
        return 0.0
    mean, error = float(gains.mean()), float(gains.std(ddof=1)) / math.sqrt(len(gains))
    return mean / max(error, abs(mean) / MOST) if mean else 0.0


def may_replace(rule: Selection, gain: float, num_blocks: int) -> bool:
    """Tell whether what is more complicated, and has a lower error, may take a simpler one's place.

    A standard error of few blocks is itself uncertain, so as many are asked for as Student's law
    exceeds as rarely as the normal one exceeds one: 1.84 for two blocks, 1.05 for twelve.

    Args:
        rule: ``train.selection``.
        gain: In standard errors, of :func:`gain_in_standard_errors`.
        num_blocks: Blocks that it is of.

    Source: Breiman, Friedman, Olshen and Stone 1984, "Classification and regression trees", 3.4.3:
    of models that differ by less than one standard error, the simplest.
    """
    if rule == "lowest":
        return True
    return num_blocks >= FEWEST_BLOCKS and gain > float(stdtrit(num_blocks - 1, ndtr(1.0)))
