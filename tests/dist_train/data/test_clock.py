"""dist_train/data/clock.py: which series can be told apart in time, and which are refused."""

import tracemalloc
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest

from dist_train.data.clock import (
    check_clock,
    clock_offsets,
    overlapping_without_clock,
    shared_clock,
)
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


def test_series_years_apart_cost_no_more_than_their_own_rows():
    data = series_set(
        irregular("a", ["1970-01-01 00:00:00", "1970-01-01 00:00:01", "1970-01-01 00:00:02"]),
        irregular("b", ["2020-01-01 00:00:00", "2020-01-01 00:00:01", "2020-01-01 00:00:02"]),
        frequency="s",
    )
    tracemalloc.start()
    offsets = clock_offsets(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert offsets is not None
    assert offsets.tolist() == [0, 1577836800]
    assert peak < 2**20


@pytest.mark.parametrize(
    ("frequency", "first", "late", "row"),
    [
        ("15min", "2020-01-01 00:00", "2020-01-02 00:15", 97),
        ("D", "2020-01-01", "2021-01-01", 366),
        ("2D", "2020-01-01", "2020-01-05", 2),
        ("MS", "2020-01-01", "2021-03-01", 14),
        ("B", "2020-01-01", "2020-01-13", 8),
    ],
)
def test_a_grid_counts_steps_of_any_kind(frequency: str, first: str, late: str, row: int):
    starts = (first, late)
    stamps = [pd.date_range(start, periods=4, freq=frequency).astype(str) for start in starts]
    data = series_set(*map(irregular, "ab", stamps), frequency=frequency)
    offsets = clock_offsets(data)
    assert offsets is not None
    assert offsets.tolist() == [0, row]
    assert not overlapping_without_clock(data)


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


def irregular(name: str, stamps: Sequence[str]) -> Series:
    dates = np.array(stamps, dtype="datetime64[ns]")
    return Series(id=name, dates=dates, values=np.zeros((len(dates), 1)), columns=("y",))


TWICE = ["2020-01-01 00:00", "2020-01-01 00:10", "2020-01-01 00:10", "2020-01-01 00:40"]
"""A duplicate and a gap, as the published weather file has them."""


def test_series_with_the_same_irregular_stamps_share_them():
    data = series_set(*(irregular(name, TWICE) for name in "abc"), frequency="10min")
    offsets = clock_offsets(data)
    assert offsets is not None
    assert offsets.tolist() == [0, 0, 0]
    check_clock(data)
    later = irregular("d", [*TWICE[1:], "2020-01-01 01:00"])
    assert overlapping_without_clock(series_set(*data.series, later, frequency="10min")) is not None


def test_groups_of_the_same_stamps_follow_one_another():
    after = [stamp.replace("2020", "2021") for stamp in TWICE[:3]]
    data = series_set(
        irregular("late", after), irregular("a", TWICE), irregular("b", TWICE),
        irregular("also late", after), frequency=None,
    )  # fmt: skip
    offsets = clock_offsets(data)
    assert offsets is not None
    assert offsets.tolist() == [4, 0, 0, 4]


def lasting(data: SeriesSet, number: int, start: int, span: int) -> tuple[str, str]:
    """When a window begins and ends, to the minute."""
    clock = shared_clock(data)
    assert clock is not None
    begin, end = clock.timeline.lasting(np.array([number]), np.array([start]), span)
    return tuple(
        str(part.astype("datetime64[ns]")[0].astype("datetime64[m]")) for part in (begin, end)
    )  # type: ignore[return-value]


def test_a_row_lasts_until_the_next_one():
    data = series_set(series("a", "2020-01-01 00:00", 10), series("b", "2020-01-01 05:00", 8))
    assert lasting(data, 0, 3, 2) == ("2020-01-01T03:00", "2020-01-01T05:00")
    assert lasting(data, 1, 0, 2) == ("2020-01-01T05:00", "2020-01-01T07:00")
    # The last row of the set, and windows beyond it.
    assert lasting(data, 1, 6, 2) == ("2020-01-01T11:00", "2020-01-01T13:00")
    assert lasting(data, 1, 8, 2) == ("2020-01-01T13:00", "2020-01-01T15:00")


def test_the_last_row_of_a_calendar_step_lasts_as_long_as_the_calendar_says():
    months = series_set(irregular("a", ["2020-11-01", "2020-12-01", "2021-01-01"]), frequency="MS")
    assert lasting(months, 0, 2, 1) == ("2021-01-01T00:00", "2021-02-01T00:00")
    unknown = series_set(irregular("a", ["2020-11-01", "2020-12-01"]), frequency=None)
    assert lasting(unknown, 0, 1, 1) == ("2020-12-01T00:00", "2020-12-31T00:00")


def test_duplicated_stamps_last_a_step_all_the_same():
    data = series_set(*(irregular(name, TWICE) for name in "ab"), frequency="10min")
    assert lasting(data, 1, 0, 2) == ("2020-01-01T00:00", "2020-01-01T00:20")
    assert lasting(data, 1, 2, 1) == ("2020-01-01T00:10", "2020-01-01T00:40")
    assert lasting(data, 1, 3, 1) == ("2020-01-01T00:40", "2020-01-01T00:50")


def test_no_times_without_a_clock():
    data = series_set(series("a", "2020-01-01 00:00", 10), series("b", "2020-01-01 05:05", 3))
    assert shared_clock(data) is None
