"""Whether a difference between two rows is more than noise: of seeds, and of the windows scored.

Shape legend (this file):
    S  seeds that both rows have     T  forecast starts, in the order of time
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, stdtr

LEVEL = 0.05
"""A difference counts where chance alone makes one as large less often than this."""

FEWEST_SPANS = 10
"""Forecast horizons that must fit into the test split, for its noise to be estimated.

Of forecasters that are equal, a p below .05 is then found for 6 to 9 of 100 (simulated with errors
of windows that overlap in all but one step); with five horizons it would be 14.
"""

SPANS_OF_LAGS = 3
"""Horizons over which autocovariances count; with one, the kernel would lose a third of them."""

_FIXED_B = (1.9600, 2.9694, 0.4160, -0.5324)
"""97.5 % point of the test with a Bartlett kernel, a polynomial in b = lags / T.

Source: Kiefer and Vogelsang 2005, "A new asymptotic theory for heteroskedasticity-autocorrelation
robust tests", table 1.
"""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A row less the one that it is compared with; negative is better."""

    mse: float
    """Mean over the seeds that both have."""

    seeds: int
    """How many those are."""

    p_seeds: float | None
    """Two-sided, paired over seeds; None with fewer than two."""

    p_windows: float | None
    """Two-sided, paired over test windows; None where they are not the same or too few."""

    @property
    def beyond_seed_noise(self) -> bool | None:
        """Whether the seeds say so; None where they cannot."""
        return None if self.p_seeds is None else self.p_seeds < LEVEL


def paired_t_test(differences: Sequence[float]) -> float | None:
    """Two-sided p of Student's test that paired differences have mean 0.

    Args:
        differences: One per seed. S of them.

    Returns:
        None with fewer than two. Differences that are all equal are no noise at all: 0, or 1
        where they are zero.
    """
    values_S = np.asarray(differences, dtype=np.float64)
    if len(values_S) < 2:
        return None
    mean, deviation = float(values_S.mean()), float(values_S.std(ddof=1))
    # What is left of equal numbers after their mean was subtracted is rounding.
    if deviation <= 1e-12 * max(abs(mean), float(np.abs(values_S).max())):
        return 1.0 if mean == 0 else 0.0
    statistic = abs(mean) / (deviation / math.sqrt(len(values_S)))
    return float(2 * stdtr(len(values_S) - 1, -statistic))


def diebold_mariano(differences: NDArray[np.float64], pred_len: int) -> float | None:
    """Two-sided p that one forecaster is as good as another on the test windows.

    Neighbouring windows share most of what they forecast, so their errors go up and down together:
    the variance of the mean takes autocovariances in (Newey and West 1987),
    and the statistic is judged by the law that it has with so many of them.

    Args:
        differences: Squared error of the one less that of the other, by forecast start. Shape (T,).
        pred_len: Steps that neighbouring forecasts may share.

    Returns:
        None where the windows span fewer than :data:`FEWEST_SPANS` horizons.

    Source: Diebold and Mariano 1995, "Comparing predictive accuracy".
    """
    count = len(differences)
    lags = max(SPANS_OF_LAGS * pred_len, round(4 * (count / 100) ** (2 / 9)))
    if count < FEWEST_SPANS * pred_len or count <= lags:
        return None
    mean, variance = float(differences.mean()), long_run_variance(differences, lags) / count
    if variance <= 1e-24 * mean**2 or variance == 0:
        return 1.0 if mean == 0 else 0.0
    statistic = abs(mean) / math.sqrt(variance)
    share = lags / count
    critical = sum(weight * share**power for power, weight in enumerate(_FIXED_B))
    return float(2 * ndtr(-statistic * _FIXED_B[0] / critical))


def long_run_variance(values: NDArray[np.float64], lags: int) -> float:
    """Sum of autocovariances, lag k counted 1 - k / (lags + 1) and both ways; never negative.

    Args:
        values: Shape (T,).
        lags: Largest lag.
    """
    centred_T = values - values.mean()
    total = float(centred_T @ centred_T)
    for lag in range(1, lags + 1):
        weight = 2 * (1 - lag / (lags + 1))
        total += weight * float(centred_T[lag:] @ centred_T[:-lag])
    return max(total / len(values), 0.0)
