"""dist_train/data/dates.py: regular stamps pass, every irregular one is named."""

import time
import tracemalloc
from typing import Any

import numpy as np
import pandas as pd
import pytest

from dist_train.data.config import DataError
from dist_train.data.dates import (
    Dates,
    calendar_phase,
    continue_dates,
    find_defects,
    follows,
    infer_frequency,
    parse_dates,
    review_dates,
    season_of,
    steps_like,
    tells_frequency,
)


def stamps(*texts: str) -> Dates:
    return np.array(texts, dtype="datetime64[ns]")


@pytest.mark.parametrize(
    ("frequency", "season"),
    [("h", 24), ("30min", 48), ("15min", 96), ("10min", 144), ("D", 7), ("W-TUE", 52),
     ("MS", 12), ("ME", 12),
     ("2MS", 6), ("11MS", 1), ("BMS", 12), ("2W-TUE", 26),
     ("QS-JAN", 4), ("YE-DEC", 1), ("B", 5), ("7min", 1), ("2h", 1)],
)  # fmt: skip
def test_a_regular_series_has_its_frequency_and_season(frequency: str, season: int):
    dates = pd.date_range("2001-01-01", periods=40, freq=frequency).to_numpy("datetime64[ns]")
    assert infer_frequency(dates) == frequency
    assert season_of(frequency) == season
    assert find_defects(dates) == []
    review_dates(dates, "strict", [])


def test_no_frequency_has_no_season():
    assert season_of(None) == 1
    assert infer_frequency(stamps("2020-01-01", "2020-01-02")) is None


DEFECTS = [
    pytest.param(["00:00", "01:00", "01:00", "02:00", "03:00"], 3, "duplicated", id="duplicated"),
    pytest.param(["00:00", "01:00", "04:00", "05:00", "06:00"], 3, "skipped", id="skipped"),
    pytest.param(["00:00", "01:00", "02:00", "01:30", "02:30"], 4, "backward", id="backward"),
    pytest.param(["00:00", "01:00", "01:20", "02:20", "03:20"], 3, "extra", id="extra"),
]


@pytest.mark.parametrize(("hours", "row", "kind"), DEFECTS)
def test_strict_names_the_row_and_as_is_notes_it(hours: list[str], row: int, kind: str):
    remedy = "Insert the rows that are not there" if kind == "skipped" else "Correct the dates"
    dates = stamps(*(f"2020-05-04 {hour}" for hour in hours))
    assert [(defect.row + 1, defect.kind) for defect in find_defects(dates)] == [(row, kind)]
    refusal = (
        rf"data.dates=strict: row {row} .*{hours[row - 1]}:00 after .*\. {remedy}, .*or take the "
        r"rows in order with data.dates=as_is"
    )
    with pytest.raises(DataError, match=refusal):
        review_dates(dates, "strict", [])
    notes: list[str] = []
    review_dates(dates, "as_is", notes)
    assert len(notes) == 1
    assert notes[0].startswith(f"1 {kind} time ")
    assert f"2020-05-04 {hours[row - 1]}:00" in notes[0]


def test_dates_that_stand_still_are_all_duplicated():
    defects = find_defects(stamps("2020-01-01", "2020-01-01", "2020-01-01"))
    assert [defect.kind for defect in defects] == ["duplicated", "duplicated"]


@pytest.mark.parametrize("frequency", ["D", "h", "MS", "ME", "B", "W-TUE", "QS-JAN"])
@pytest.mark.parametrize("rows", [2, 3, 40])
def test_a_file_that_is_newest_first_is_refused_as_one(frequency: str, rows: int):
    dates = pd.date_range("2020-01-01", periods=rows, freq=frequency)[::-1]
    dates = dates.to_numpy("datetime64[ns]")
    assert infer_frequency(dates) is None
    with pytest.raises(
        DataError, match="row 2 .*the dates go back .*newest first: turn it round"
    ) as refusal:
        review_dates(dates, "strict", [])
    assert "as_is" not in str(refusal.value)  # would train with time reversed
    notes: list[str] = []
    review_dates(dates, "as_is", notes)
    assert notes[0].startswith(f"{rows - 1} backward time step")


def test_rows_in_disorder_are_not_newest_first():
    with pytest.raises(DataError, match="the dates go back") as refusal:
        review_dates(stamps("2020-01-03", "2020-01-02", "2020-01-04"), "strict", [])
    assert "newest first" not in str(refusal.value)


def test_a_missing_month_is_named_and_short_months_are_not():
    dates = pd.date_range("2020-01-01", periods=14, freq="MS").delete(6)
    defects = find_defects(dates.to_numpy("datetime64[ns]"))
    assert [(defect.row, defect.kind) for defect in defects] == [(6, "skipped")]


@pytest.mark.parametrize(
    "texts",
    [["1990/1/1 0:00", "1990/1/2 0:00"], ["1990-01-01", "1990-01-02"],
     ["1990-01-01T00:00:00Z", "1990-01-02T00:00:00Z"],
     ["1990-01-01T01:00:00+01:00", "1990-01-02T01:00:00+01:00"],
     ["1990-01-01T01:00:00+01:00", "1990-01-02T02:00:00+02:00"]],
    ids=["exchange_rate", "iso", "utc", "another zone", "two zones"],
)  # fmt: skip
def test_dates_are_read_as_people_write_them(texts: list[str]):
    got = parse_dates(pd.Series(texts), "date")
    assert got.dtype == "datetime64[ns]"
    np.testing.assert_array_equal(got, stamps("1990-01-01", "1990-01-02"))


def texts_of(form: str, start: str, **given: Any) -> list[str]:
    return pd.date_range(start, **given).strftime(form).tolist()


@pytest.mark.parametrize(
    ("start", "given"),
    [("2020-01-15", {"periods": 30}), ("2020-01-01", {"periods": 30}),
     ("2020-01-01", {"periods": 264, "freq": "h"}), ("2020-01-01", {"periods": 30, "freq": "MS"})],
    ids=["no month", "may be months", "hours", "months"],
)  # fmt: skip
@pytest.mark.parametrize("first", ["%d/%m", "%m/%d"])
@pytest.mark.parametrize("times", [1, 2], ids=["one series", "two below each other"])
def test_days_and_months_are_told_by_what_is_regular(
    start: str, given: dict[str, Any], first: str, times: int
):
    texts = texts_of(f"{first}/%Y %H:%M", start, **given)
    wanted = pd.date_range(start, **given).to_numpy("datetime64[ns]")
    got = parse_dates(pd.Series(texts * times), "when")
    np.testing.assert_array_equal(got, np.tile(wanted, times))


@pytest.mark.parametrize("form", ["%d/%m/%Y", "%d.%m.%Y %H:%M"])
@pytest.mark.parametrize("given", [{"periods": 12}, {"periods": 96, "freq": "15min"}])
def test_days_that_might_be_months_are_refused(form: str, given: dict[str, Any]):
    texts = texts_of(form, "2024-05-04", **{"freq": "D", **given})
    if given["periods"] == 12:
        texts = texts_of(form, "2024-01-01", **given)
    elif "%H" not in form:
        texts = texts[:1]
    with pytest.raises(DataError, match=r"when: '.*' may be 2024-0.* as regular either way: write"):
        parse_dates(pd.Series(texts), "when")


def test_one_day_that_is_its_own_month_is_no_question():
    texts = texts_of("%d/%m/%Y %H:%M", "2024-05-05", periods=24, freq="h")
    np.testing.assert_array_equal(
        parse_dates(pd.Series(texts), "when"),
        pd.date_range("2024-05-05", periods=24, freq="h").to_numpy("datetime64[ns]"),
    )


@pytest.mark.parametrize(
    ("frequency", "last", "first_of_next"),
    [("W-SUN", "2024-07-22", "2024-07-29"), ("MS", "2024-06-03", "2024-07-01"),
     ("B", "2024-02-10", "2024-02-12"), ("h", "2024-02-10T00:30", "2024-02-10T01:30")],
)  # fmt: skip
def test_stamps_beside_the_grid_lose_no_step(frequency: str, last: str, first_of_next: str):
    following = continue_dates(np.datetime64(last), frequency, 3)
    assert len(following) == 3
    assert following[0] == np.datetime64(first_of_next)
    assert (np.diff(following) > np.timedelta64(0)).all()


@pytest.mark.parametrize(
    ("frequency", "same", "other"),
    [("h", "h", "D"), ("D", "D", "h"), ("W-SUN", "W-MON", "D"), ("MS", "BMS", "QS"),
     ("B", "B", "W"), ("15min", "15min", "h")],
)  # fmt: skip
def test_most_steps_tell_whether_it_is_that_frequency(frequency: str, same: str, other: str):
    for freq, expected in ((same, True), (other, False)):
        dates = pd.date_range("2024-01-01", periods=40, freq=freq).delete([7, 20])
        assert steps_like(dates.to_numpy("datetime64[ns]"), frequency) is expected


@pytest.mark.parametrize(
    ("cells", "message"),
    [(["2020-01-01", "soon"], "row 2 has 'soon', which is not a date"),
     (["2020-01-01", None], "row 2 has '(None|nan)', which is not a date"),
     (["never", "soon"], "row 1 has 'never'"),
     ([20200101, 20200102], "the column holds numbers such as 20200101"),
     (["1000-01-01", "1000-01-02"], "outside the years 1678 to 2261")],
)  # fmt: skip
def test_what_is_no_date_is_refused(cells: list[object], message: str):
    with pytest.raises(DataError, match=rf"data.date_column=when: .*{message}"):
        parse_dates(pd.Series(cells), "when")


@pytest.mark.parametrize("word", ["now", "today"])
def test_a_word_that_means_another_date_every_day_is_no_date(word: str):
    with pytest.raises(DataError, match=f"row 2 has '{word}', which is not a date"):
        parse_dates(pd.Series(["2020-01-01", word]), "date")


@pytest.mark.parametrize(
    "time", ["10:30", "9:05", "10:30:00", "10:30:00.5", "10:30 PM", " 00:00", "00:30Z",
             "10:30+01:00", "10:30 UTC"],
)  # fmt: skip
def test_a_time_without_a_date_is_no_date(time: str):
    """pandas gives it the date of today."""
    for cells in ([time] * 3, pd.Categorical([time] * 3), np.array([time] * 3, dtype=object)):
        with pytest.raises(DataError, match="row 1 has .*, which is not a date"):
            parse_dates(pd.Series(cells), "date")
    with pytest.raises(DataError, match="row 2 has .*, which is not a date"):
        parse_dates(pd.Series(["2020-01-01 10:00", time]), "date")


def test_a_date_may_begin_with_its_time():
    got = parse_dates(pd.Series(["10:30 2020-01-01", "10:30 2020-01-02"]), "date")
    np.testing.assert_array_equal(got, stamps("2020-01-01T10:30", "2020-01-02T10:30"))


DAYS = pd.date_range("2020-03-20", periods=20, freq="D")  # clocks are changed on March 29


@pytest.mark.parametrize("zone", ["Europe/Berlin", "UTC", "Asia/Tokyo", "America/New_York"])
@pytest.mark.parametrize("form", ["zoned", "%Y-%m-%d %H:%M:%S%z", "%Y-%m-%dT%H:%M%z", "str"])
def test_days_of_a_zone_stay_days_when_clocks_change(zone: str, form: str):
    zoned = pd.Series(DAYS.tz_localize(zone))
    column = zoned
    if form == "str":
        column = zoned.astype(str)
    elif form != "zoned":
        column = zoned.dt.strftime(form)
    np.testing.assert_array_equal(parse_dates(column, "date"), DAYS.to_numpy("datetime64[ns]"))


@pytest.mark.parametrize("as_text", [False, True])
def test_hours_of_a_zone_become_utc_although_some_are_midnight(as_text: bool):
    hours = pd.date_range("2020-03-28", periods=60, freq="h", tz="Europe/Berlin")
    for stamps_of in (hours, hours[[0, 24, 25]], hours[[1, 25]]):
        column = pd.Series(stamps_of.astype(str) if as_text else stamps_of)
        expected = stamps_of.tz_convert("UTC").tz_localize(None).to_numpy("datetime64[ns]")
        np.testing.assert_array_equal(parse_dates(column, "date"), expected)


def test_a_missing_day_among_zoned_ones_is_named():
    column = pd.Series(DAYS.tz_localize("Europe/Berlin").astype(str))
    column[3] = None
    with pytest.raises(DataError, match="row 4 has '(None|nan)', which is not a date"):
        parse_dates(column, "date")


def test_a_long_cell_is_not_repeated_whole():
    with pytest.raises(DataError) as caught:
        parse_dates(pd.Series(["2020-01-01", "x" * 10**6]), "date")
    assert len(str(caught.value)) < 300


def test_millions_of_defects_are_counted_in_a_moment():
    dates = np.zeros(3_000_000, dtype="datetime64[ns]")
    started = time.process_time()
    notes: list[str] = []
    review_dates(dates, "as_is", notes)
    assert notes[0].startswith("2999999 duplicated time stamps: 1970-01-01 00:00:00, ")
    assert time.process_time() - started < 5


@pytest.mark.parametrize("frequency", ["h", "10min", "D", "W-TUE", "MS", "ME", "QS-JAN", "B"])
def test_stamps_follow_their_frequency_and_are_continued(frequency: str):
    dates = pd.date_range("2021-01-01", periods=45, freq=frequency).to_numpy("datetime64[ns]")
    assert follows(dates[:40], frequency)
    assert not follows(np.delete(dates[:40], 20), frequency)
    assert not follows(dates[:40], "7min")
    np.testing.assert_array_equal(continue_dates(dates[39], frequency, 5), dates[40:])


@pytest.mark.parametrize(
    ("begin", "rows", "frequency", "is_told"),
    [("2024-01-01", 2, "D", False), ("2024-01-01", 5, "D", False), ("2024-01-01", 6, "D", True),
     ("2024-01-03", 4, "D", True), ("2024-01-03", 4, "B", True), ("2020-04-01", 3, "MS", False),
     ("2020-04-01", 5, "MS", True), ("2020-04-01", 3, "QS-JAN", False),
     ("2024-01-01", 3, "h", True)],
)  # fmt: skip
def test_a_few_rows_do_not_tell_their_frequency(
    begin: str, rows: int, frequency: str, is_told: bool
):
    dates = pd.date_range(begin, periods=rows, freq=frequency).to_numpy("datetime64[ns]")
    assert tells_frequency(dates, infer_frequency(dates)) == is_told


def test_rows_without_a_frequency_tell_that_there_is_none():
    dates = stamps("2024-01-01", "2024-01-02", "2024-01-09")
    assert tells_frequency(dates, infer_frequency(dates))


def test_what_many_series_share_cannot_be_changed():
    dates = continue_dates(np.datetime64("2021-01-01"), "h", 3)
    with pytest.raises(ValueError, match="read-only"):
        dates[0] = dates[1]


def test_equal_steps_are_told_by_the_first_of_them():
    """Seven years of 365 days in a row are years; the eighth shows it."""
    years = pd.date_range("1896-03-01", periods=30, freq="YS-MAR").to_numpy("datetime64[ns]")
    days = pd.date_range("1897-03-01", periods=30, freq="365D").to_numpy("datetime64[ns]")
    assert infer_frequency(years) == "YS-MAR"
    assert infer_frequency(days) == "365D"
    assert not follows(days, "YS-MAR")


@pytest.mark.parametrize(
    ("day", "is_hinted"), [("2024-03-31", True), ("2024-04-02", False)], ids=["Sunday", "Tuesday"]
)
def test_a_clock_set_forward_is_named_as_one(day: str, is_hinted: bool):
    hours = pd.date_range(pd.Timestamp(day) - pd.Timedelta(days=1), periods=60, freq="h")
    dates = hours.delete(26).to_numpy("datetime64[ns]")  # from 2 to 3 at night
    with pytest.raises(DataError) as refusal:
        review_dates(dates, "strict", [])
    assert ("daylight saving" in str(refusal.value)) == is_hinted


def test_the_day_is_a_circle():
    times = ["1969-12-31T00:00", "2024-04-01T06:00", "2024-07-09T12:00", "2100-01-01T18:00"]
    phase = calendar_phase(np.array(times, dtype="datetime64[ns]"))
    circle = [[1, 0], [0, 1], [-1, 0], [0, -1]]
    np.testing.assert_allclose(phase[:, 2:], circle, atol=1e-6)


def test_the_year_is_a_circle():
    times = ["2000-01-01", "2000-07-01T14:54:36", "2024-04-01", "1999-10-02", "2100-01-01"]
    phase = calendar_phase(np.array(times, dtype="datetime64[ns]"))[:, :2]
    assert phase.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(phase, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(phase[1], [-1, 0], atol=1e-4)  # half a mean year later
    np.testing.assert_allclose(phase[[2, 3]], [[0, 1], [0, -1]], atol=0.03)
    np.testing.assert_allclose(phase[4], [1, 0], atol=0.03)  # a century later it is still new year


def test_long_stamps_are_not_kept_in_memory():
    """Of every frame that a service forecasts."""
    gappy = pd.date_range("2020", periods=50_000, freq="min").delete(100).to_numpy()

    def look(number: int) -> None:
        dates = gappy + np.timedelta64(number, "D")
        assert infer_frequency(dates) is None
        assert not follows(dates, "min")

    look(0)
    tracemalloc.start()
    for number in range(1, 6):
        look(number)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < gappy.nbytes
