"""One clock for several series: which rows of two series lie at the same time. Free of torch."""

import numpy as np
import numpy.typing as npt

from dist_train.data.config import DataError
from dist_train.data.series import SeriesSet


def clock_offsets(series_set: SeriesSet) -> npt.NDArray[np.int64] | None:
    """Find where each series begins on a clock that all of them share.

    Returns:
        Rows between the first time stamp of the set and that of each series. Shape (S,).
        None where there is no such clock: one series alone, or time stamps that are irregular or
        lie between those of another series. The rows of two series then say nothing about time.
    """
    if series_set.frequency is None or len(series_set.series) == 1:
        return None
    import pandas as pd

    dates = [series.dates for series in series_set.series]
    first, last = min(part[0] for part in dates), max(part[-1] for part in dates)
    clock = pd.date_range(first, last, freq=series_set.frequency).to_numpy()
    offsets = [int(np.searchsorted(clock, part[0])) for part in dates]
    for part, offset in zip(dates, offsets, strict=True):
        if not np.array_equal(clock[offset : offset + len(part)], part):
            return None
    return np.array(offsets, dtype=np.int64)


def overlapping_without_clock(series_set: SeriesSet) -> tuple[str, str] | None:
    """Name two series that overlap in time although the set has no common clock; None: none do."""
    if len(series_set.series) == 1 or clock_offsets(series_set) is not None:
        return None
    ordered = sorted(series_set.series, key=lambda series: series.dates[0])
    latest = ordered[0]
    for series in ordered[1:]:
        if series.dates[0] <= latest.dates[-1]:
            return latest.id, series.id
        latest = max(latest, series, key=lambda one: one.dates[-1])
    return None


def check_clock(series_set: SeriesSet) -> None:
    """Refuse series among which a memory could not tell past from future.

    Raises:
        DataError: Two of them overlap in time and share no regular clock.
    """
    pair = overlapping_without_clock(series_set)
    if pair is not None:
        raise DataError(
            f"gram.use_gram=true: series {pair[0]!r} and {pair[1]!r} overlap in time but share no "
            "regular clock, so a window could be shown its own future in the other one: bring "
            "their time stamps onto one grid, or set gram.use_gram=false."
        )
