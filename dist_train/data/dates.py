"""Time stamps of a series: parse them, check them, say how far apart they are."""

import re
import warnings
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from dist_train.data.config import DataError, quote

Dates = npt.NDArray[np.datetime64]

# pandas completes these with the day of this machine's clock.
_RELATIVE = ("now", "today")
_TIME_ALONE = (
    r"\s*\d{1,2}:\d{2}(?::\d{2}(?:\.\d+)?)?\s*(?:[AaPp][Mm])?"
    r"\s*(?:Z|UTC|GMT|[+-]\d{2}(?::?\d{2})?)?\s*"
)
_MIDNIGHT_AND_OFFSET = r"[T ]0?0:00(?::00(?:\.0+)?)?\s*(?:Z|[+-]\d{2}(?::?\d{2})?)$"
_DAY_S = 24 * 3600
_YEAR_S = 365.2425 * _DAY_S
_NS_PER_DAY = 86_400_000_000_000
_SEASONS = {  # rows per season, by the time between rows in minutes
    60: 24, 30: 48, 15: 96, 10: 144, 24 * 60: 7, 7 * 24 * 60: 52,
}  # fmt: skip
_CALENDAR_SEASONS = {  # rows per year, of business days per week
    "MS": 12, "ME": 12, "BMS": 12, "BME": 12, "QS": 4, "QE": 4, "BQS": 4, "BQE": 4, "W": 52,
    "B": 5,
}  # fmt: skip
_MEANING = {
    "duplicated": "a duplicated time stamp",
    "backward": "the dates go back",
    "skipped": "time steps were skipped",
    "extra": "a shorter step than the others",
}
KINDS = tuple(_MEANING)
# More equal steps than any calendar has in a row (seven years of 365 days around 1900).
_TELLING_ROWS = 12
_MOST_KEPT = 2**15
"""Bytes of time stamps that an answer is remembered for: a service that forecasts frame after frame
would else keep them all."""
_NS_PER_HOUR = 3_600_000_000_000
_AS_IS = "or take the rows in order with data.dates=as_is."
_CORRECT = f"Correct the dates, {_AS_IS}"
_INSERT = f"Insert the rows that are not there, empty, for data.missing to fill, {_AS_IS}"
_NEWEST_FIRST = "The file is newest first: turn it round, the oldest row first."
_DAYLIGHT_SAVING = (
    " If the clock was changed for daylight saving there, give the stamps in UTC, or with their "
    "zone."
)
_SUNDAY = 3  # days since 1970-01-01, a Thursday, modulo 7
_OF_BUSINESS_DAYS = {  # frequencies whose first few rows may be those of business days, too
    "D": "B", "MS": "BMS", "ME": "BME", "QS": "BQS", "QE": "BQE", "YS": "BYS", "YE": "BYE",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Defect:
    """A step between two rows that is not the usual one."""

    row: int
    """Position in the series of the later of the two rows."""

    kind: str
    """One of :data:`KINDS`; skipped is a longer step than usual, extra a shorter one."""


def parse_dates(column: "pd.Series[str]", name: str) -> Dates:
    """Read a column of dates.

    Args:
        column: Text, time stamps or dates; with a time zone they become UTC, but days stay the
            days of that zone: see :func:`are_days`.
        name: How the user calls the column.

    Returns:
        The stamps, in UTC or without a zone. Shape (T,), datetime64[ns].

    Raises:
        DataError: Numbers, or a cell that is no date, with its row and value; a time is none.
    """
    if pd.api.types.is_numeric_dtype(column):
        raise DataError(
            f"data.date_column={name}: the column holds numbers such as {column.iloc[0]}, not "
            "dates: write dates such as 2020-01-31 00:00:00."
        )
    if isinstance(column.dtype, pd.PeriodDtype):
        raise DataError(
            f"data.date_column={name}: the column holds periods, not moments: give the first "
            "moment of each, as column.dt.to_timestamp() does."
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # "could not infer format": rows are named
        day_first = _is_day_first(column, name)
        try:
            parsed = pd.to_datetime(column, errors="coerce", dayfirst=day_first)
            if not pd.api.types.is_datetime64_any_dtype(parsed):
                raise ValueError
        except ValueError:  # several offsets in one column
            days = _days_of(column.astype(str))
            parsed = pd.to_datetime(
                column if days is None else days, errors="coerce", utc=days is None
            )
    bad = np.flatnonzero(parsed.isna().to_numpy() | _has_no_day(column))
    if len(bad):
        raise DataError(
            f"data.date_column={name}: row {bad[0] + 1} has {quote(column.iloc[bad[0]])}, which "
            "is not a date like the first one: write all dates in one format."
        )
    if isinstance(parsed.dtype, pd.DatetimeTZDtype):
        if not are_days(parsed):
            parsed = parsed.dt.tz_convert("UTC")
        parsed = parsed.dt.tz_localize(None)
    try:
        return parsed.astype("datetime64[ns]").to_numpy()
    except (pd.errors.OutOfBoundsDatetime, OverflowError) as failure:
        raise DataError(
            f"data.date_column={name}: a date is outside the years 1678 to 2261 ({failure}): "
            "correct it."
        ) from failure


def _is_day_first(column: "pd.Series[Any]", name: str) -> bool:
    """Whether dates such as 31/01/2020 begin with the day: so all are dates, or they are regular.

    Raises:
        DataError: They would be in either order.
    """
    if pd.api.types.is_datetime64_any_dtype(column.dtype) or not len(column):
        return False
    if re.match(r"\s*\d{1,2}[/.-]\d{1,2}[/.-]\d{4}\b", str(column.iloc[0])) is None:
        return False
    read = []
    for day_first in (False, True):
        dates = pd.to_datetime(column, errors="coerce", dayfirst=day_first)
        if pd.api.types.is_datetime64_any_dtype(dates) and dates.notna().all():
            # Series may stand one below the other: what counts is the times that there are.
            stamps = np.unique(dates.dt.tz_localize(None).to_numpy().astype("datetime64[ns]"))
            steps = 0 if infer_frequency(stamps) else len(np.unique(np.diff(stamps)))
            read.append((steps, day_first, stamps))
    if len(read) < 2:
        return bool(read) and read[0][1]
    (of_month, _, month), (of_day, _, day) = read
    if np.array_equal(month, day):
        return False
    if of_month != of_day:
        return of_day < of_month
    raise DataError(
        f"data.date_column={name}: {quote(column.iloc[0])} may be {show(month[0])} or "
        f"{show(day[0])}, and the dates are as regular either way: write them as {show(day[0])}."
    )


def are_days(stamps: "pd.Series[Any]") -> bool:
    """Whether stamps with a zone are days: midnight there, each of them, in summer and winter."""
    shown = stamps.dt.tz_localize(None)
    return bool((shown == shown.dt.normalize()).all())


def _days_of(text: "pd.Series[str]") -> "pd.Series[str] | None":
    """The days of stamps that are midnight at offsets of their own; None where one is not."""
    # A million hours are searched for half a second: mostly two of them tell.
    for part in (text.iloc[:2], text):
        if not part.str.contains(_MIDNIGHT_AND_OFFSET, na=False).all():
            return None
    return text.str.replace(_MIDNIGHT_AND_OFFSET, "", regex=True)


def _has_no_day(column: "pd.Series[Any]") -> npt.NDArray[np.bool_]:
    """Which cells would be another date every day."""
    if pd.api.types.is_datetime64_any_dtype(column.dtype):
        return np.zeros(len(column), dtype=bool)
    text = column.astype(str)
    found = text.isin(_RELATIVE).to_numpy(dtype=bool, copy=True)
    # The pattern would take twice as long as parsing; few dates have a colon so early.
    early = np.flatnonzero(text.str.slice(0, 6).str.contains(":", regex=False, na=False).to_numpy())
    found[early] |= text.iloc[early].str.fullmatch(_TIME_ALONE).to_numpy(dtype=bool)
    return found


def calendar_phase(dates: Dates) -> npt.NDArray[np.float32]:
    """Time of the mean Gregorian year, and of the day, as points on the unit circle.

    Args:
        dates: Shape (...), datetime64.

    Returns:
        Cosine and sine of the year's, then of the day's. Shape (..., 4), float32.
    """
    since = (dates - np.datetime64("2000-01-01")) / np.timedelta64(1, "s")
    angles = [2 * np.pi * (since % length / length) for length in (_YEAR_S, _DAY_S)]
    waves = [wave(angle) for angle in angles for wave in (np.cos, np.sin)]
    return np.stack(waves, axis=-1).astype(np.float32)


def infer_frequency(dates: Dates) -> str | None:
    """Name the time between rows as a pandas alias; None when it is not regular.

    Calendar steps (months, quarters, years, business days) are regular although they differ in
    length. Fewer than 3 rows have no frequency, and neither have rows that go back.
    """
    if len(dates) < 3 or dates[-1] < dates[0]:  # pandas would name a negative one
        return None
    if len(dates) > _TELLING_ROWS and _has_equal_steps(dates):
        dates = dates[:_TELLING_ROWS]
    stamps = dates.astype("datetime64[ns]").tobytes()
    return (_infer if len(stamps) <= _MOST_KEPT else _infer.__wrapped__)(stamps)


@lru_cache(maxsize=1024)
def _infer(stamps: bytes) -> str | None:
    """The frequency of time stamps in nanoseconds; thousands of series often share theirs."""
    dates = np.frombuffer(stamps, dtype="datetime64[ns]")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pandas is changing the type of the answer
        inferred = pd.infer_freq(pd.DatetimeIndex(dates))
        return None if inferred is None else pd.tseries.frequencies.to_offset(inferred).freqstr


def _has_equal_steps(dates: Dates) -> bool:
    stamps_ns = dates.astype("datetime64[ns]").astype(np.int64)
    step = stamps_ns[1] - stamps_ns[0]
    return bool(step > 0 and (stamps_ns[1:] - stamps_ns[:-1] == step).all())


def follows(dates: Dates, frequency: str) -> bool:
    """Whether time stamps continue each other at a frequency, given as a pandas alias."""
    count = len(dates)
    if count > _TELLING_ROWS and _has_equal_steps(dates):
        count = _TELLING_ROWS
    stamps = dates[:count].astype("datetime64[ns]").tobytes()
    known = _follows if len(stamps) <= _MOST_KEPT else _follows.__wrapped__
    return known(stamps, frequency)


@lru_cache(maxsize=1024)
def _follows(stamps: bytes, frequency: str) -> bool:
    dates = np.frombuffer(stamps, dtype="datetime64[ns]")
    expected = pd.date_range(dates[0], periods=len(dates), freq=frequency).as_unit("ns")
    return bool(np.array_equal(expected.to_numpy(), dates))


def tells_frequency(dates: Dates, frequency: str | None) -> bool:
    """Whether the frequency of time stamps is surely theirs, not for want of rows.

    Fewer than 3 rows tell none, and from Monday to Friday days are business days, too.

    Args:
        dates: Shape (T,).
        frequency: What was inferred from them; None: there is none.
    """
    if len(dates) < 3:
        return False
    name, dash, anchor = (frequency or "").partition("-")
    other = _OF_BUSINESS_DAYS.get(name)
    return other is None or not follows(dates, f"{other}{dash}{anchor}")


def continue_dates(last: np.datetime64, frequency: str, count: int) -> Dates:
    """Name the time stamps after ``last``. Shape (count,), datetime64[ns]."""
    return _continued(int(last.astype("datetime64[ns]").astype(np.int64)), frequency, count)


@lru_cache(maxsize=1024)
def _continued(last_ns: int, frequency: str, count: int) -> Dates:
    last = pd.Timestamp(last_ns)
    dates = pd.date_range(last, periods=count + 1, freq=frequency).as_unit("ns")
    if dates[0] == last:
        dates = dates[1:]
    elif (step := step_of(frequency)) is not None:  # weeks that begin on another day
        dates = pd.DatetimeIndex(last_ns + step * np.arange(1, count + 1))
    following: Dates = dates[:count].to_numpy()
    following.setflags(write=False)  # shared by all series that end alike
    return following


def step_of(frequency: str) -> int | None:
    """Nanoseconds of a step; None where steps differ in length."""
    steps = np.unique(np.diff(_some_at(frequency).astype(np.int64)))
    return int(steps[0]) if len(steps) == 1 else None


def steps_like(dates: Dates, frequency: str) -> bool:
    """Whether most steps are those of a frequency, be some of them others."""
    return _usual_step(dates) == _usual_step(_some_at(frequency))


def _some_at(frequency: str) -> Dates:
    some: Dates = pd.date_range("2001-01-01", periods=40, freq=frequency).as_unit("ns").to_numpy()
    return some


def _usual_step(dates: Dates) -> tuple[str, int] | None:
    """The most frequent step forward, in months where they are that long."""
    steps_ns, steps, unit = _steps(dates)
    forward = steps[steps_ns > 0]
    return (unit, _most_frequent(forward)) if len(forward) else None


def _steps(dates: Dates) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], str]:
    """Steps in ns; and in their unit: months, which differ in length alone, where they are long."""
    stamps_ns = dates.astype(np.int64)
    steps_ns = stamps_ns[1:] - stamps_ns[:-1]
    forward = steps_ns[steps_ns > 0]
    if len(forward) and np.median(forward) >= 28 * _NS_PER_DAY:
        months = dates.astype("datetime64[M]").astype(np.int64)
        return steps_ns, months[1:] - months[:-1], "months"
    return steps_ns, steps_ns, "ns"


def find_defects(dates: Dates) -> list[Defect]:
    """List the steps that break the rhythm of most rows; empty for a regular series."""
    rows, numbers = _odd_steps(dates)
    return [Defect(int(row), KINDS[number]) for row, number in zip(rows, numbers, strict=True)]


def _odd_steps(dates: Dates) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Rows after an unusual step, and the number of its kind in :data:`KINDS`."""
    if len(dates) < 2 or _has_equal_steps(dates) or infer_frequency(dates) is not None:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    steps_ns, steps, _ = _steps(dates)
    forward = steps[steps_ns > 0]
    usual = _most_frequent(forward) if len(forward) else 1  # no step is usual
    odd = np.flatnonzero(steps != usual)
    kinds = np.select(
        [steps_ns[odd] == 0, steps_ns[odd] < 0, steps[odd] > usual],
        [KINDS.index(kind) for kind in ("duplicated", "backward", "skipped")],
        default=KINDS.index("extra"),
    )
    return odd + 1, kinds


def review_dates(
    dates: Dates,
    rule: Literal["strict", "as_is"],
    notes: list[str],
    where: str = "",
    rows: npt.NDArray[np.intp] | None = None,
) -> None:
    """Refuse a series whose time stamps are not regular, or note what is wrong with them.

    Args:
        dates: Time stamps. Shape (T,).
        rule: strict refuses; as_is appends to ``notes``.
        notes: What was accepted.
        where: Which series, for messages, such as `` of series 'a'``.
        rows: Position of each row in the file, for messages; None: 0, 1, 2... Shape (T,).

    Raises:
        DataError: Under strict, the first duplicated, backward, skipped or extra stamp; of a file
            that is newest first, that it is.
    """
    odd, numbers = _odd_steps(dates)
    if not len(odd):
        return
    if rule == "strict":
        first = int(odd[0])
        row = first if rows is None else int(rows[first])
        if (dates[1:] < dates[:-1]).all():
            remedy = _NEWEST_FIRST  # in order, time would run backward
        elif _is_clock_change(dates, first):
            remedy = _CORRECT + _DAYLIGHT_SAVING
        else:
            remedy = _INSERT if KINDS[numbers[0]] == "skipped" else _CORRECT
        raise DataError(
            f"data.dates=strict: row {row + 1}{where} has the time stamp {show(dates[first])} "
            f"after {show(dates[first - 1])}: {_MEANING[KINDS[numbers[0]]]} ({len(odd)} such "
            f"places in all). {remedy}"
        )
    for number, kind in enumerate(KINDS):
        found = odd[numbers == number]
        if len(found):
            named = [
                show(dates[i])
                if kind == "duplicated"
                else f"{show(dates[i - 1])} to {show(dates[i])}"
                for i in found[:5]
            ]
            noun = "stamp" if kind == "duplicated" else "step"
            plural = "" if len(found) == 1 else "s"
            more = ", ..." if len(found) > 5 else ""
            notes.append(
                f"{len(found)} {kind} time {noun}{plural}{where}: {', '.join(named)}{more}"
            )


def _is_clock_change(dates: Dates, row: int) -> bool:
    """Whether a defect looks like a clock set forward or back: on a Sunday night, by an hour."""
    stamps_ns = dates.astype("datetime64[ns]").astype(np.int64)
    usual = int(np.median(np.diff(stamps_ns)))
    at_night = 0 <= (stamps_ns[row] % _NS_PER_DAY) // _NS_PER_HOUR <= 4
    on_sunday = stamps_ns[row] // _NS_PER_DAY % 7 == _SUNDAY
    excess = stamps_ns[row] - stamps_ns[row - 1] - usual
    return bool(usual <= _NS_PER_HOUR and at_night and on_sunday and abs(excess) <= _NS_PER_HOUR)


def show(date: np.datetime64) -> str:
    """Write a time stamp the way users write it, to the second."""
    return str(date.astype("datetime64[s]")).replace("T", " ")


def season_of(frequency: str | None) -> int:
    """Rows per season of a frequency: hourly 24, daily 7, monthly 12...; 1 when there is none."""
    if frequency is None:
        return 1
    offset = pd.tseries.frequencies.to_offset(frequency)
    calendar = offset.freqstr.split("-")[0].lstrip("0123456789")
    if calendar in _CALENDAR_SEASONS:
        seasons, rest = divmod(_CALENDAR_SEASONS[calendar], offset.n)
        return seasons if seasons and not rest else 1
    try:
        minutes = pd.Timedelta(
            str(frequency if frequency[0].isdigit() else f"1{frequency}")
        ) / pd.Timedelta(minutes=1)
    except ValueError:  # years and the like have no fixed length
        return 1
    return _SEASONS.get(int(minutes), 1) if minutes == int(minutes) else 1


def _most_frequent(numbers: npt.NDArray[np.int64]) -> int:
    values, counts = np.unique(numbers, return_counts=True)
    return int(values[counts.argmax()])
