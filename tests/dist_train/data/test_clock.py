"""dist_train/data/clock.py: which series can be told apart in time, and which are refused."""

import numpy as np
import pandas as pd
import pytest

from dist_train.data.clock import check_clock, clock_offsets, overlapping_without_clock
from dist_train.data.config import DataError
from dist_train.data.series import Series, SeriesSet


def series(name: str, start: str, rows: int) -> Series:
    dates = pd.date_range(start, periods=rows, freq="h").to_numpy().astype("datetime64[ns]")
    return Series(id=name, dates=dates, values=np.zeros((rows, 1)), columns=("y",))


def series_set(*members: Series, frequency: str | None = "h") -> SeriesSet:
    return SeriesSet(
        name="x", series=members, frequency=frequency, seasonal_period=24, description="",
        borders=(0.7, 0.1, 0.2), checksum="", notes=(),
    )  # fmt: skip


def test_series_on_one_grid_share_its_clock():
    data = series_set(series("a", "2020-01-01 00:00", 10), series("b", "2020-01-01 05:00", 3))
    offsets = clock_offsets(data)
    assert offsets is not None
    assert offsets.tolist() == [0, 5]
    check_clock(data)


def test_one_series_needs_no_clock():
    data = series_set(series("a", "2020-01-01", 10), frequency=None)
    assert clock_offsets(data) is None
    check_clock(data)


def test_series_between_each_others_stamps_are_refused():
    data = series_set(series("a", "2020-01-01 00:00", 10), series("b", "2020-01-01 05:05", 3))
    assert overlapping_without_clock(data) == ("a", "b")
    with pytest.raises(DataError, match=r"'a' and 'b' overlap in time .* gram.use_gram=false"):
        check_clock(data)


def test_irregular_series_one_after_the_other_are_fine():
    data = series_set(
        series("late", "2021-01-01 00:07", 10), series("a", "2020-01-01", 10), frequency=None
    )
    assert overlapping_without_clock(data) is None


def test_a_short_series_inside_a_long_one_is_found():
    data = series_set(
        series("long", "2020-01-01", 1000), series("b", "2020-01-02", 5),
        series("c", "2020-01-20", 5), frequency=None,
    )  # fmt: skip
    assert overlapping_without_clock(data) == ("long", "b")
