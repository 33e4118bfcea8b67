"""Corpora of the scaling benchmark: built sources of as many training windows as are asked for."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from dist_train.data.arrow_series import write_series
from dist_train.data.lengths import num_windows
from dist_train.data.series import Series, SeriesSet
from dist_train.data.splits import borders

SEQ_LEN, PRED_LEN = 96, 24
ROWS = 20_000
SPLITS = (0.7, 0.1, 0.2)
FREQUENCIES = {"hourly": "h", "quarters": "15min"}
"""Names of the two sources, and what differs between them."""
SERIES_AT_ONCE = 16


def windows_of_a_series() -> int:
    """Training windows of one series."""
    begin, end = borders(ROWS, SPLITS)["train"]
    return num_windows(end - begin, SEQ_LEN, PRED_LEN, False)


def build(folder: Path, windows: int) -> list[Path]:
    """Write two sources that have at least so many training windows together.

    Returns:
        Their folders.
    """
    count = max(1, -(-windows // windows_of_a_series() // len(FREQUENCIES)))
    for name in FREQUENCIES:
        write_series(folder / name, name, _parts(name, count), {})
    return [folder / name for name in FREQUENCIES]


def _parts(name: str, count: int) -> Iterator[SeriesSet]:
    """Series with a cycle and noise, some at a time."""
    rng = np.random.default_rng(0)
    dates = pd.date_range("2000-01-01", periods=ROWS, freq=FREQUENCIES[name]).as_unit("ns")
    cycle = np.sin(2 * np.pi * np.arange(ROWS) / 24)
    for first in range(0, count, SERIES_AT_ONCE):
        series = tuple(
            Series(
                id=f"{name}/{number}",
                dates=dates.to_numpy(),
                values=(cycle * rng.uniform(1, 9) + rng.normal(size=ROWS))[:, None],
                columns=("y",),
            )
            for number in range(first, min(first + SERIES_AT_ONCE, count))
        )
        yield SeriesSet(
            name=name,
            series=series,
            frequency=FREQUENCIES[name],
            seasonal_period=24,
            description="",
            borders=SPLITS,
            checksum=f"{name} {first}",
        )
