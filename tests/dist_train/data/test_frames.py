"""dist_train/data/frames.py: frames are read like files, in any order, and given back in kind."""

from dataclasses import replace
from datetime import timedelta, timezone
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
from dateutil.tz import gettz

from dist_train.data.config import DataError
from dist_train.data.dates import continue_dates
from dist_train.data.frames import Expected, Frame, is_daily_or_longer, read_frame

WIDE = Expected(
    name="own", columns=("a", "b"), num_series=1, frequency="h", date_column=None
)  # fmt: skip
LONG = Expected(name="own", columns=("y",), num_series=2, frequency="h", date_column=None)


def like(expected: Expected, frequency: str | None) -> Expected:
    return Expected(
        name=expected.name, columns=expected.columns, num_series=expected.num_series,
        frequency=frequency, date_column=expected.date_column,
    )  # fmt: skip


def wide(rows: int = 20, freq: str = "h", start: str = "2024-01-01", tz: str | None = None):
    dates = pd.date_range(start, periods=rows, freq=freq, tz=tz)
    return pd.DataFrame({"date": dates, "a": np.arange(rows) * 1.0, "b": np.arange(rows) + 0.5})


def long(rows: int = 20, ids: tuple[Any, ...] = ("x", "w")):
    dates = pd.date_range("2024-01-01", periods=rows, freq="h")
    parts = [
        pd.DataFrame({"unique_id": id_, "ds": dates, "y": np.arange(rows) + 100.0 * n})
        for n, id_ in enumerate(ids)
    ]
    return pd.concat(parts, ignore_index=True)


def continued(frame: Frame, steps: int = 3) -> Any:
    """What a forecast of ``steps`` steps is given back as, its values the step's number."""
    series = frame.series_set.series
    assert frame.series_set.frequency is not None
    dates = [continue_dates(one.dates[-1], frame.series_set.frequency, steps) for one in series]
    return frame.give_back(
        [one.id for one in series for _ in range(steps)],
        [(frame.date_column, np.concatenate(dates))],
        [("TimeLLM", np.tile(np.arange(steps) * 1.0, len(series)))],
    )


@pytest.mark.parametrize("kind", ["pandas", "polars"])
def test_the_order_of_rows_and_columns_does_not_matter(kind: str):
    for table, expected in ((wide(), WIDE), (long(), LONG)):
        mixed = table.sample(frac=1, random_state=3)[list(table.columns)[::-1]]
        given = mixed if kind == "pandas" else pl.from_pandas(mixed)
        straight, read = read_frame(table, expected).series_set, read_frame(given, expected)
        assert [one.id for one in read.series_set.series] == [one.id for one in straight.series]
        for one, other in zip(read.series_set.series, straight.series, strict=True):
            np.testing.assert_array_equal(one.values, other.values)
            np.testing.assert_array_equal(one.dates, other.dates)
            assert one.columns == other.columns


def test_further_columns_are_left_alone():
    read = read_frame(wide().assign(note="text"), WIDE)
    assert read.series_set.series[0].columns == ("a", "b")


def test_names_of_the_date_column():
    assert read_frame(wide().rename(columns={"date": "ds"}), WIDE).date_column == "ds"
    own = Expected(
        name="own", columns=("a",), num_series=1, frequency="h", date_column="when"
    )  # fmt: skip
    assert read_frame(wide().rename(columns={"date": "when"}), own).date_column == "when"


def test_y_stands_for_the_one_variate_of_the_training():
    demand = Expected(
        name="own", columns=("Demand",), num_series=1, frequency="h", date_column=None
    )  # fmt: skip
    (series,) = read_frame(long(ids=("x",)), demand).series_set.series
    assert series.columns == ("Demand",)
    np.testing.assert_array_equal(series.values[:, 0], np.arange(20))
    both = long(ids=("x",)).assign(Demand=7.0)
    assert read_frame(both, demand).series_set.series[0].values[0, 0] == 7
    with pytest.raises(DataError, match="'y' of series 'x' has no value at row 4"):  # as written
        read_frame(changed(long(ids=("x",)), "y", 3, np.nan), demand)


@pytest.mark.parametrize("dtype", ["int64", "int8", "float32", "Int64", "Float64", object])
def test_numbers_of_every_type_are_numbers(dtype: Any):
    table = wide()
    table["b"] = np.arange(20)
    read = read_frame(table.astype({"b": dtype}), WIDE)
    np.testing.assert_array_equal(read.series_set.series[0].values[:, 1], np.arange(20))


def test_decimals_are_numbers():
    table = wide().assign(b=[Decimal(n) / 4 for n in range(20)])
    for given in (table, pl.from_pandas(wide()).with_columns(pl.Series("b", list(table["b"])))):
        values = read_frame(given, WIDE).series_set.series[0].values
        np.testing.assert_array_equal(values[:, 1], np.arange(20) / 4)


@pytest.mark.parametrize(
    ("ids", "dtype"), [((7, 3), "int64"), (("x", "w"), "category"), (("x", "w"), "str")]
)
def test_ids_come_back_as_they_were(ids: tuple[Any, ...], dtype: str):
    table = long(ids=ids).astype({"unique_id": dtype})
    result = continued(read_frame(table.sample(frac=1, random_state=0), LONG))
    assert list(result["unique_id"]) == [ids[1]] * 3 + [ids[0]] * 3
    assert result["unique_id"].dtype == table["unique_id"].dtype
    assert list(result.columns) == ["unique_id", "ds", "TimeLLM"]
    assert list(result.index) == list(range(6))


def test_polars_comes_back_as_polars_with_its_types():
    given = pl.from_pandas(long(ids=(7, 3))).with_columns(pl.col("ds").cast(pl.Datetime("ms")))
    result = continued(read_frame(given, LONG))
    assert isinstance(result, pl.DataFrame)
    assert result.schema == {"unique_id": pl.Int64, "ds": pl.Datetime("ms"), "TimeLLM": pl.Float64}
    assert result["unique_id"].to_list() == [3, 3, 3, 7, 7, 7]


def test_days_stay_days_in_polars():
    given = pl.from_pandas(wide(freq="D")).with_columns(pl.col("date").cast(pl.Date))
    result = continued(read_frame(given, like(WIDE, "D")), 1)
    assert result["date"].to_list() == [pd.Timestamp("2024-01-21").date()]


@pytest.mark.parametrize("kind", ["pandas", "polars"])
def test_hours_go_on_through_a_change_of_the_clock(kind: str):
    table = wide(rows=26, start="2024-03-30 00:00", tz="Europe/Berlin")
    given = table if kind == "pandas" else pl.from_pandas(table)
    result = continued(read_frame(given, WIDE))
    expected = pd.date_range("2024-03-31 03:00", periods=3, freq="h", tz="Europe/Berlin")
    assert [str(stamp) for stamp in result["date"].to_list()] == [str(stamp) for stamp in expected]
    # Two hours earlier the clock shows 01:00: the hour from 2 to 3 is not there.
    assert table["date"].iloc[-1] == pd.Timestamp("2024-03-31 01:00", tz="Europe/Berlin")


@pytest.mark.parametrize("kind", ["pandas", "polars"])
@pytest.mark.parametrize("form", ["%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%d %H:%M:%S+00:00"])
def test_text_that_says_utc_goes_on_in_utc(kind: str, form: str):
    given = wide().assign(date=lambda t: t["date"].dt.strftime(form))
    got = continued(read_frame(pl.from_pandas(given) if kind == "polars" else given, WIDE))
    dates = list(pd.Series(got["date"].to_list() if kind == "polars" else got["date"]))
    assert dates == list(pd.date_range("2024-01-01 20:00", periods=3, freq="h", tz="UTC"))


@pytest.mark.parametrize("kind", ["pandas", "polars"])
def test_days_are_those_of_the_zone(kind: str):
    table = wide(freq="D", start="2024-03-20", tz="Europe/Berlin")  # 23 hours on March 31
    given = table if kind == "pandas" else pl.from_pandas(table)
    result = continued(read_frame(given, like(WIDE, "D")))
    assert [str(stamp) for stamp in result["date"].to_list()] == [
        f"2024-04-{day:02d} 00:00:00+02:00" for day in (9, 10, 11)
    ]


@pytest.mark.parametrize("kind", ["pandas", "polars"])
def test_days_are_those_of_the_zone_where_the_training_had_no_frequency(kind: str):
    table = wide(freq="D", start="2024-03-20", tz="Europe/Berlin")
    read = read_frame(table if kind == "pandas" else pl.from_pandas(table), like(WIDE, None))
    assert read.series_set.frequency == "D"
    assert [str(stamp) for stamp in continued(read)["date"]] == [
        f"2024-04-{day:02d} 00:00:00+02:00" for day in (9, 10, 11)
    ]


@pytest.mark.parametrize("kind", ["pandas", "polars"])
def test_a_midnight_that_clocks_skip_is_the_first_hour_there_is(kind: str):
    table = wide(freq="D", start="2023-04-07", tz="Africa/Cairo")  # no midnight on April 28
    given = table if kind == "pandas" else pl.from_pandas(table)
    result = continued(read_frame(given, like(WIDE, "D")))
    assert [str(stamp) for stamp in result["date"].to_list()] == [
        "2023-04-27 00:00:00+02:00", "2023-04-28 01:00:00+03:00", "2023-04-29 00:00:00+03:00",
    ]  # fmt: skip


ZONES = [
    "America/New_York", "Etc/GMT+3", "EST5EDT", gettz("America/Port-au-Prince"),
    timezone(timedelta(hours=5, minutes=45)),
]  # fmt: skip


@pytest.mark.parametrize("zone", ZONES, ids=str)
@pytest.mark.parametrize("freq", ["h", "D"])
def test_every_zone_that_pandas_knows_is_kept(zone: Any, freq: str):
    dates = pd.date_range("2024-03-01", periods=230, freq=freq, tz=zone)  # over a change of clocks
    table = wide(rows=227).assign(date=dates[:227])
    result = continued(read_frame(table, like(WIDE, freq)))
    assert result["date"].dtype == table["date"].dtype
    assert list(result["date"]) == list(dates[227:])


ARROW = [
    ("timestamp[us][pyarrow]", "h"), ("timestamp[ms, tz=America/New_York][pyarrow]", "h"),
    ("timestamp[s, tz=America/New_York][pyarrow]", "D"), ("date32[day][pyarrow]", "D"),
]  # fmt: skip


@pytest.mark.parametrize(("dtype", "freq"), ARROW)
def test_time_that_arrow_holds_for_pandas_goes_on_as_in_polars(dtype: str, freq: str):
    zone = "America/New_York" if "tz" in dtype else None
    table = wide(rows=40, freq=freq, start="2024-03-01", tz=zone).astype({"date": dtype})
    expected = like(WIDE, freq)
    result = continued(read_frame(table.sample(frac=1, random_state=2), expected))
    assert result["date"].dtype == table["date"].dtype
    twin = continued(read_frame(pl.from_pandas(table), expected))
    assert [str(one) for one in result["date"]] == [
        str(pd.Timestamp(one) if freq == "h" or zone else one) for one in twin["date"].to_list()
    ]


@pytest.mark.parametrize(
    ("frequency", "longer"), [("h", False), ("15min", False), ("D", True), ("MS", True)]
)
def test_days_and_longer_are_told_by_the_clock(frequency: str, longer: bool):
    assert is_daily_or_longer(frequency) == longer
    assert not is_daily_or_longer(None)


@pytest.mark.parametrize("frequency", ["MS", "ME", "B", "QS-JAN", "W-TUE"])
def test_calendars_go_on(frequency: str):
    dates = pd.date_range("2023-01-02", periods=23, freq=frequency)
    table = wide().assign(date=dates[:20])
    result = continued(read_frame(table, like(WIDE, frequency)))
    assert list(result["date"]) == list(dates[20:])


def test_weeks_may_begin_on_another_day():
    table = wide(freq="W-WED")
    result = continued(read_frame(table, like(WIDE, "W-TUE")), 1)
    assert list(result["date"]) == [table["date"].iloc[-1] + pd.Timedelta(days=7)]


def test_a_few_rows_follow_the_frequency_of_the_training():
    monday_to_friday = wide(rows=5, freq="B")  # or any days
    read = read_frame(monday_to_friday, like(WIDE, "B"))
    assert list(continued(read, 1)["date"]) == [pd.Timestamp("2024-01-08")]


def test_gaps_are_filled_on_request():
    table = wide()
    table.loc[4, "a"] = np.nan
    for given in (table.drop(index=[7, 8]), pl.from_pandas(table.drop(index=[7, 8]))):
        (series,) = read_frame(given, WIDE, "interpolate").series_set.series
        np.testing.assert_allclose(series.values, wide()[["a", "b"]])
        np.testing.assert_array_equal(series.dates, wide()["date"].to_numpy())
    (first, second) = read_frame(long().drop(index=[7, 30]), LONG, "interpolate").series_set.series
    np.testing.assert_allclose(second.values[:, 0], np.arange(20))
    np.testing.assert_allclose(first.values[:, 0], np.arange(20) + 100)


MIXED = replace(
    LONG, frequency=None, frequencies={"x": "h", "w": "h", "day": "D", "any": None}, num_series=4
)


def test_a_frame_has_the_frequency_of_its_own_series_where_sources_differ():
    whole = read_frame(long(), MIXED).series_set.series
    gaps = read_frame(long().drop(index=[7, 30]), MIXED, "interpolate").series_set.series
    for one, other in zip(gaps, whole, strict=True):
        np.testing.assert_allclose(one.values, other.values)
        np.testing.assert_array_equal(one.dates, other.dates)
    hourly = long(ids=("day",))
    with pytest.raises(DataError, match="have the frequency h, the model was trained on D"):
        read_frame(hourly, MIXED)
    assert len(read_frame(hourly.assign(unique_id="any"), MIXED).series_set.series) == 1


def test_days_of_a_zone_are_days_where_sources_differ():
    dates = pd.date_range("2024-03-20 08:00", periods=23, freq="D", tz="America/New_York")
    table = long(ids=("day",)).assign(ds=dates[:20])
    assert list(continued(read_frame(table, MIXED))["ds"]) == list(dates[20:])


def test_series_of_several_frequencies_are_refused_also_where_sources_differ():
    days = long(ids=("day",)).assign(ds=pd.date_range("2024-01-01", periods=20, freq="D"))
    with pytest.raises(DataError, match="series 'day' has the frequency D, series 'w' h"):
        read_frame(pd.concat([long(), days]), MIXED)


@pytest.mark.parametrize("kind", ["pandas", "polars"])
def test_two_columns_of_one_name_are_refused(kind: str):
    def read(table: pd.DataFrame, expected: Expected) -> Frame:
        return read_frame(table if kind == "pandas" else pl.from_pandas(table), expected)

    numbers = np.zeros(1)
    day = np.array(["2024-01-21"], dtype="datetime64[ns]")
    own = read(wide().rename(columns={"a": "cutoff"}), replace(WIDE, columns=("cutoff", "b")))
    dates = [("date", day), ("cutoff", day)]
    with pytest.raises(DataError, match="column 'cutoff': two columns .* another name of that var"):
        own.give_back(["own"], dates, [("cutoff", numbers), ("b", numbers)])
    assert own.give_back(["own"], dates[:1], [("cutoff", numbers)]).columns[1] == "cutoff"
    for layout, expected, other in (("wide", WIDE, "date"), ("long", LONG, "ds")):
        table = (wide() if layout == "wide" else long()).rename(columns={other: "cutoff"})
        named = read(table, replace(expected, date_column="cutoff"))
        with pytest.raises(
            DataError, match=f"'cutoff': two columns .*rename the dates to {other!r}"
        ):
            named.give_back(["x"], [("cutoff", day), ("cutoff", day)], [("b", numbers)])


@pytest.mark.parametrize("kind", ["pandas", "polars"])
def test_another_frame_has_ids_as_they_were_given(kind: str):
    given: Any = long(ids=(7, 3)) if kind == "pandas" else pl.from_pandas(long(ids=(7, 3)))
    read = read_frame(given, LONG)
    made = read.make(["3", "7", "7"], {"what": ["p", "q", "r"]})
    assert isinstance(made, type(given))
    assert list(made.columns) == ["unique_id", "what"]
    assert list(made["unique_id"]) == [3, 7, 7]
    one: Any = wide() if kind == "pandas" else pl.from_pandas(wide())
    assert list(read_frame(one, WIDE).make(["own"], {"what": [1]})["unique_id"]) == ["own"]


def test_columns_without_rows_keep_their_types_in_polars():
    empty = {"text": np.array([], dtype=str), "rank": np.array([], dtype=np.int64)}
    for given, expected, id_type in (
        (wide(), WIDE, pl.String), (long(ids=(7, 3)), LONG, pl.Int64),
    ):  # fmt: skip
        made = read_frame(pl.from_pandas(given), expected).make([], empty)
        assert made.schema == {"unique_id": id_type, "text": pl.String, "rank": pl.Int64}


def test_the_remedy_for_a_missing_value_is_the_argument():
    with pytest.raises(DataError, match=r'fill them, or say missing="interpolate"\.$'):
        read_frame(changed(wide(), "a", 3, np.nan), WIDE)


def changed(table: pd.DataFrame, column: str, row: int, value: Any) -> pd.DataFrame:
    table = table.astype({column: object})
    table.loc[row, column] = value
    return table


REFUSED = {
    "not a frame": (lambda: {"a": [1]}, WIDE, r"df is a dict: give a data frame of pandas or pol"),
    "lazy": (lambda: pl.from_pandas(wide()).lazy(), WIDE, r"frame is lazy: collect it first"),
    "empty": (lambda: wide().iloc[:0], WIDE, r"the frame has no rows: give the history"),
    "one row": (lambda: long().iloc[:21], LONG, r"series 'w' has 1 row: a series needs at least 2"),
    "no dates": (lambda: wide().drop(columns="date"), WIDE, r"has no column 'date' with the dates"),
    "index": (lambda: wide().set_index("date"), WIDE, r"dates in the index: .*reset_index\(\)"),
    "no variate": (lambda: wide()[["date", "a"]], WIDE, r"has no column 'b': the model was trained "
                   r"on a, b; the columns are date, a"),
    "no values": (lambda: long()[["unique_id", "ds"]], LONG, r"has no column 'y'"),
    "wide for long": (lambda: wide(), LONG, r"no column 'unique_id', and the model knows 2 series"),
    "long for wide": (lambda: long(), WIDE, r"column 'unique_id', .* trained on 2 variates side"),
    "twice": (lambda: pd.concat([wide(), wide()[["a"]]], axis=1), WIDE,
              r"the frame has more than one column named 'a': rename them"),
    "text": (lambda: wide().assign(a="1.5"), WIDE,
             r"column 'a' holds String, such as '1.5', not numbers: turn the text into numbers"),
    "text in between": (lambda: changed(wide(), "a", 3, "many"), WIDE,
                        r"column 'a' holds 'many', a str, not numbers"),
    "bool": (lambda: wide().assign(a=True), WIDE, r"column 'a' holds Boolean, such as 'True', not"),
    "dates as values": (lambda: wide().assign(a=wide()["date"]), WIDE, r"column 'a' holds Datetim"),
    "category": (lambda: wide().assign(a=pd.Categorical(["u"] * 20)), WIDE, r"holds Categorical"),
    "missing": (lambda: changed(wide(), "a", 3, None), WIDE,
                r"column 'a' has no value at row 4 \(2024-01-01 03:00:00\)"),
    "missing in long": (lambda: changed(long(), "y", 25, np.nan), LONG,
                        r"column 'y' of series 'w' has no value at row 26 \(2024-01-01 05:00:00\)"),
    "infinite": (lambda: changed(wide(), "b", 3, np.inf), WIDE, r"'b' has the value inf at row 4"),
    "too large": (lambda: changed(wide(), "b", 3, 1e39), WIDE, r"'b' has 1e\+39 at row 4, more th"),
    "no stamp": (lambda: changed(wide(), "date", 3, pd.NaT), WIDE, r"row 4 has 'NaT', which is no"),
    "numbers for dates": (lambda: wide().assign(date=range(20)), WIDE, r"holds numbers such as 0"),
    "no id": (lambda: changed(long(), "unique_id", 3, None), LONG, r"'unique_id' has no value at r"
              r"ow 4"),
    "twice the same stamp": (lambda: pd.concat([wide(), wide().iloc[[3]]]), WIDE,
                             r"2024-01-01 03:00:00 after 2024-01-01 03:00:00: a duplicated"),
    "gap": (lambda: wide().drop(index=[7]), WIDE,
            r"2024-01-01 08:00:00 after 2024-01-01 06:00:00: time steps were skipped"),
    "another frequency": (lambda: wide(freq="D"), WIDE,
                          r"frequency D, the model was trained on h: bring them to h"),
    "mixed frequencies": (
        lambda: pd.concat([long(ids=("x",)), wide(freq="2h").rename(
            columns={"date": "ds", "a": "y"}).assign(unique_id="w")]), LONG,
        r"series 'w' has the frequency 2h, series 'x' h"),
    "local clocks in spring": (
        lambda: wide(rows=60, start="2024-03-30", tz="Europe/Berlin").assign(
            date=lambda t: t["date"].dt.tz_localize(None)), WIDE,
        r"03:00:00 after 2024-03-31 01:00:00.*daylight saving there, give the stamps in UTC"),
    "local clocks in autumn": (
        lambda: wide(rows=60, start="2024-10-26", tz="Europe/Berlin").assign(
            date=lambda t: t["date"].dt.tz_localize(None)), WIDE,
        r"02:00:00 after 2024-10-27 02:00:00.*daylight saving there"),
    "text with an offset": (
        lambda: wide(tz="Australia/Sydney").assign(date=lambda t: t["date"].astype(str)), WIDE,
        r"data.date_column=date: '2024-01-01 00:00:00\+11:00' has an offset from UTC, .* make it"),
    "text with two offsets": (
        lambda: wide(rows=60, start="2024-03-30", tz="Europe/London").assign(
            date=lambda t: t["date"].astype(str)), WIDE, r"30 00:00:00\+00:00' has an offset from"),
    "zoned objects": (lambda: wide(tz="Asia/Tokyo").astype({"date": object}), WIDE, "an offset fr"),
    "no dates at all": (lambda: wide().assign(date=[{"day": n} for n in range(20)]), WIDE,
                        r"row 1 has \"?\{'day': 0\}\"?, which is not a date"),
    "periods": (lambda: wide().assign(date=pd.period_range("2024", periods=20, freq="h")), WIDE,
                r"data.date_column=date: .*periods, not moments: .*column.dt.to_timestamp\(\)"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_forecast_is_named(what: str):
    make, expected, message = REFUSED[what]
    with pytest.raises(DataError, match=message) as refusal:
        read_frame(make(), expected)
    assert "data.dates=as_is" not in str(refusal.value)  # a frame has no such setting
    assert "data.missing" not in str(refusal.value)


@pytest.mark.parametrize("row", [3, 19])
def test_a_row_without_a_series_is_refused_also_where_gaps_are_filled(row: int):
    with pytest.raises(DataError, match=rf"'unique_id' has no value at row {row + 1}: name"):
        read_frame(changed(long(), "unique_id", row, None), LONG, "interpolate")


def test_the_remedy_for_a_skipped_stamp_is_the_argument():
    with pytest.raises(DataError, match='Insert the rows .*, or say missing="interpolate"'):
        read_frame(wide().drop(index=[7]), WIDE)


def test_rows_are_counted_where_the_user_sees_them():
    table = changed(wide(), "a", 3, np.nan).iloc[::-1].reset_index(drop=True)
    with pytest.raises(DataError, match=r"'a' has no value at row 17 \(2024-01-01 03:00:00\)"):
        read_frame(table, WIDE)


def test_one_wrong_year_is_not_filled():
    table = wide().copy()
    table.loc[19, "date"] = pd.Timestamp("2099-01-01")
    with pytest.raises(DataError, match="time steps were skipped"):
        read_frame(table, WIDE, "interpolate")


def test_an_unknown_treatment_is_refused():
    with pytest.raises(DataError, match=r"missing='drop': must be 'error' or 'interpolate'"):
        read_frame(wide(), WIDE, "drop")  # type: ignore[arg-type]
