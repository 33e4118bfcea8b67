"""Data frames in memory: read one as a file is read, and give forecasts back as the same kind.

Shape legend (this file):
    T  rows of the frame     S  series
"""

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import tzinfo
from decimal import Decimal
from typing import Any, Literal

import narwhals as nw
import numpy as np
import numpy.typing as npt
import pandas as pd

from dist_train.data.config import DataConfig, DataError, quote
from dist_train.data.dates import Dates, are_days, parse_dates
from dist_train.data.frame_gaps import ID_COLUMN, Filled, fill_gaps, newest_filled
from dist_train.data.frequency import at_frequency
from dist_train.data.layout import check_ids
from dist_train.data.series import SeriesSet, from_table
from dist_train.data.tables import refuse_repeated
from dist_train.data.values import Rows

_LABEL = "the frame"
_NUMBERS = (int, float, Decimal, np.number)


@dataclass(frozen=True, kw_only=True, eq=False)
class Expected:
    """What a model was trained on, as far as a frame has to fit it."""

    name: str
    """Name of the data set; the one series of a wide file is called so."""

    columns: tuple[str, ...]
    """The variates, in the order of the training."""

    num_series: int
    frequency: str | None
    """As a pandas alias; None: irregular, then any will do."""

    date_column: str | None
    """``data.date_column``; None: ``date`` or ``ds``."""

    frequencies: Mapping[str, str | None] = field(default_factory=dict)
    """By id of the series, where sources differ in theirs; else empty."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Frame:
    """A frame of the user, its series, and the way back to its kind."""

    native: Any
    """The frame as narwhals wraps it."""

    series_set: SeriesSet
    layout: Literal["wide", "long"]
    date_column: str
    zone: str | tzinfo | None
    """Time zone of its stamps, of pandas the object itself; those of the series are then in UTC, or
    what its clocks show."""

    shows_clocks: bool
    first_rows: Mapping[str, int]
    """A row of each series, by id."""

    filled: Mapping[str, Filled]
    """The newest value of each series that was filled, by id; of those that have one."""

    def give_back(
        self,
        ids: Sequence[str],
        dates: Sequence[tuple[str, Dates]],
        columns: Sequence[tuple[str, npt.NDArray[np.floating]]],
    ) -> Any:
        """Make a frame of the kind that was given, its ids and stamps of the same types.

        Args:
            ids: The series of each row, left out of a wide frame.
            dates: Names and columns of time stamps. Shape (rows,) each.
            columns: Names and the other columns, in order. Shape (rows,) each.

        Raises:
            DataError: Two columns would have one name.
        """
        named = [name for name, _ in (*dates, *columns)]
        self._refuse_twice([ID_COLUMN, *named] if self.layout == "long" else named)
        is_pandas = self.native.implementation.is_pandas()
        typed: Callable[[Dates], Any] = self._pandas_dates if is_pandas else self._to_utc
        stamps = {name: typed(part) for name, part in dates}
        return self._frame(ids, {**stamps, **dict(columns)}, list(stamps))

    def make(self, ids: Sequence[str], columns: Mapping[str, Any]) -> Any:
        """Make any other frame of the kind that was given, time stamps without a zone.

        Args:
            ids: The series of each row; as they were given in a long frame, else as text.
            columns: The other columns, lists or arrays by name, in order.
        """
        if self.layout == "wide":
            columns = {ID_COLUMN: np.array(ids, dtype=str), **columns}
        return self._frame(ids, columns)

    def _frame(
        self, ids: Sequence[str], columns: Mapping[str, Any], stamps: Sequence[str] = ()
    ) -> Any:
        """Put columns beside the ids of a long frame; ``stamps`` get type and zone, in polars."""
        known = []
        if self.layout == "long":
            known = [self.native[ID_COLUMN][[self.first_rows[id_] for id_ in ids]]]
        kind = self.native.implementation
        if kind.is_pandas():
            made = pd.DataFrame(dict(columns))
            for one in known:
                made.insert(0, ID_COLUMN, one.to_native().reset_index(drop=True))
            return made
        new = nw.from_dict(columns, backend=kind)
        new = new.with_columns(self._expression(name) for name in stamps)
        return new.select(*known, *new.columns).to_native()

    def _refuse_twice(self, names: Sequence[str]) -> None:
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is None:
            return
        remedy = "train the model under another name of that variate"
        if twice == self.date_column:
            remedy = f"rename the dates to {'ds' if self.layout == 'long' else 'date'!r}"
        raise DataError(
            f"column {quote(twice)}: two columns of what is given back would have this name: "
            f"{remedy}."
        )

    def _pandas_dates(self, dates: Dates) -> "pd.Series[Any]":
        column = pd.Series(pd.DatetimeIndex(self._to_utc(dates)))
        if self.zone is not None:
            column = column.dt.tz_localize("UTC").dt.tz_convert(self.zone)
        original = self.native[self.date_column].to_native().dtype
        return column.astype(original) if _is_time(self.native, self.date_column) else column

    def _to_utc(self, dates: Dates) -> Dates:
        """What clocks of the zone show, in UTC; a time that they skip is the next one there is."""
        if not self.shows_clocks:
            return dates
        shown = pd.DatetimeIndex(dates)
        zoned = shown.tz_localize(
            self.zone, ambiguous=np.ones(len(shown), dtype=bool), nonexistent="shift_forward"
        )
        utc: Dates = zoned.tz_convert("UTC").tz_localize(None).to_numpy()
        return utc

    def _expression(self, name: str) -> Any:
        """The stamps with zone and type of those given, for other kinds than pandas."""
        column = nw.col(name)
        if self.zone is not None:
            column = column.dt.replace_time_zone("UTC").dt.convert_time_zone(str(self.zone))
        if _is_time(self.native, self.date_column):
            column = column.cast(self.native.schema[self.date_column])
        return column


def read_frame(
    frame: Any, expected: Expected, missing: Literal["error", "interpolate"] = "error"
) -> Frame:
    """Read a frame as a file is read, whatever the order of its rows and columns.

    Args:
        frame: Of pandas or polars, or another eager kind that narwhals knows.
        expected: What it has to fit.
        missing: Refuse missing values and skipped time stamps, or fill them linearly.

    Raises:
        DataError: It is no such frame, columns are missing or hold no numbers, its time stamps
            are not regular or of another frequency than the model's, a value is missing.
    """
    if missing not in ("error", "interpolate"):
        raise DataError(f"missing={missing!r}: must be 'error' or 'interpolate'.")
    native = _wrap(frame, expected)
    layout, date_column, columns = _choose_columns(list(native.columns), expected)
    if len(native) == 0:
        raise DataError(f"{_LABEL} has no rows: give the history of each series.")
    for name in columns:
        _check_numbers(native, name)
    kept = [*([ID_COLUMN] if layout == "long" else []), date_column, *columns]
    table = native.select(kept).to_pandas().reset_index(drop=True)
    if expected.frequencies:
        expected = replace(expected, frequency=_frequency_of(table[ID_COLUMN], expected))
    table[date_column] = _as_numpy(table[date_column])
    zone = _zone_of(native, table, date_column)
    shows_clocks = zone is not None and (
        is_daily_or_longer(expected.frequency) or are_days(table[date_column])
    )
    if shows_clocks:
        table[date_column] = table[date_column].dt.tz_localize(None)
    elif zone is None:
        zone = _zone_of_cells(table[date_column], date_column)
    table[date_column] = parse_dates(table[date_column], date_column)
    table, rows = _sort(table, layout, date_column)
    if layout == "long":
        check_ids(table[ID_COLUMN], rows)
    filled: dict[str, Filled] = {}
    if missing == "interpolate":
        table, rows = fill_gaps(table, rows, layout, date_column, expected.frequency)
        filled = newest_filled(table, layout, date_column, columns, expected.name)
    config = DataConfig(
        path=_LABEL, layout=layout, date_column=date_column, columns=columns, missing=missing
    )
    try:
        series_set = from_table(
            table, config, name=expected.name, rows=rows, frequency=expected.frequency
        )
    except DataError as refusal:  # a frame has no settings, its remedy is an argument
        told = re.sub(r"set data\.missing=[\w ]+", 'say missing="interpolate"', str(refusal))
        told = told.replace(", empty, for data.missing to fill", ', or say missing="interpolate"')
        told = re.sub(r", or take (the )?rows in order with data\.dates=as_is", "", told)
        raise DataError(told) from None
    series_set = at_frequency(series_set, expected.frequency, _LABEL)
    # A "y" stands for the one variate of the training, whatever that was called.
    named = tuple(replace(one, columns=expected.columns) for one in series_set.series)
    series_set = replace(series_set, series=named)
    first_rows: dict[str, int] = {}
    if layout == "long":
        codes, names = pd.factorize(table[ID_COLUMN].astype(str))
        _, firsts = np.unique(codes, return_index=True)
        first_rows = {str(id_): int(rows[at]) for id_, at in zip(names, firsts, strict=True)}
    return Frame(
        native=native,
        series_set=series_set,
        layout=layout,
        date_column=date_column,
        zone=zone,
        shows_clocks=shows_clocks,
        first_rows=first_rows,
        filled=filled,
    )


def is_daily_or_longer(frequency: str | None) -> bool:
    """Whether steps are days or longer, which clocks tell and hours do not."""
    if frequency is None:
        return False
    offsets = pd.tseries.offsets
    hours = (offsets.Hour, offsets.Minute, offsets.Second, offsets.Milli, offsets.Micro,
             offsets.Nano)  # fmt: skip
    return not isinstance(pd.tseries.frequencies.to_offset(frequency), hours)


def _wrap(frame: Any, expected: Expected) -> Any:
    if isinstance(frame, pd.DataFrame):
        refuse_repeated(_LABEL, [str(name) for name in frame.columns])
        named = {str(name) for name in frame.columns}
        wanted = {expected.date_column, "date", "ds"} & named
        if not wanted and isinstance(frame.index, (pd.DatetimeIndex, pd.PeriodIndex)):
            raise DataError(
                f"{_LABEL} has its dates in the index: make them a column with "
                "df.rename_axis('date').reset_index() (wide) or 'ds' (long)."
            )
        frame = frame.set_axis([str(name) for name in frame.columns], axis=1)
    wrapped = nw.from_native(frame, pass_through=True)
    if isinstance(wrapped, nw.LazyFrame):
        raise DataError(f"{_LABEL} is lazy: collect it first, df.collect().")
    if not isinstance(wrapped, nw.DataFrame):
        raise DataError(
            f"df is a {type(frame).__name__}: give a data frame of pandas or polars, with a date "
            "column and one column per variate, or unique_id, ds and y."
        )
    return wrapped


def _choose_columns(
    names: list[str], expected: Expected
) -> tuple[Literal["wide", "long"], str, list[str]]:
    """Layout, date column and variates of a frame."""
    has_ids = ID_COLUMN in names
    layout: Literal["wide", "long"] = "long" if has_ids else "wide"
    usual = ["ds", "date"] if has_ids else ["date", "ds"]
    dates = [name for name in [expected.date_column, *usual] if name in names]
    shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    if not dates:
        raise DataError(
            f"{_LABEL} has no column {expected.date_column or usual[0]!r} with the dates, its "
            f"columns are {shown}: rename the one with the dates."
        )
    columns = list(expected.columns)
    if has_ids and len(columns) > 1:
        raise DataError(
            f"{_LABEL} has a column {ID_COLUMN!r}, one series in many rows, but the model was "
            f"trained on {len(columns)} variates side by side: give a date column and the columns "
            f"{', '.join(columns[:12])}."
        )
    if not has_ids and expected.num_series > 1:
        raise DataError(
            f"{_LABEL} has no column {ID_COLUMN!r}, and the model knows {expected.num_series} "
            f"series: say in it which series each row belongs to; the columns are {shown}."
        )
    if has_ids and columns[0] not in names and "y" in names:
        columns = ["y"]
    lacking = [name for name in columns if name not in names]
    if lacking:
        raise DataError(
            f"{_LABEL} has no column {quote(lacking[0])}: the model was trained on "
            f"{', '.join(columns[:12])}; the columns are {shown}."
        )
    return layout, str(dates[0]), columns


def _check_numbers(native: Any, name: str) -> None:
    """Refuse what pandas would take for numbers and the user may not have meant as such."""
    dtype = native.schema[name]
    remedy = "give numbers"
    if dtype.is_numeric():
        return
    if dtype == nw.Object:
        odd = [cell for cell in native[name].to_list()
               if not (cell is None or cell is pd.NA)
               and (isinstance(cell, bool) or not isinstance(cell, _NUMBERS))]  # fmt: skip
        if not odd:
            return
        what = f"{quote(odd[0])}, a {type(odd[0]).__name__}"
    else:
        what = f"{dtype}"
        if len(native):
            what += f", such as {quote(native[name][0])}"
    if dtype in (nw.String, nw.Categorical):
        remedy = "turn the text into numbers, or correct it"
    elif dtype == nw.Boolean:
        remedy = "turn it into 0 and 1 if these are what is to be forecast"
    raise DataError(f"column {quote(name)} holds {what}, not numbers: {remedy}.")


def _frequency_of(ids: "pd.Series[Any]", expected: Expected) -> str | None:
    """The one frequency of the series of a frame; None where theirs differ, or none is known."""
    known = expected.frequencies
    found = {known[id_] for id_ in ids.astype(str).unique() if id_ in known}
    return next(iter(found)) if len(found) == 1 else None


def _as_numpy(column: "pd.Series[Any]") -> "pd.Series[Any]":
    """Time stamps and dates that Arrow holds for pandas as numpy's; any other column as it is."""
    if isinstance(column.dtype, pd.ArrowDtype) and pd.api.types.is_datetime64_any_dtype(column):
        return pd.Series(pd.DatetimeIndex(column), index=column.index)
    return column


def _zone_of(native: Any, table: pd.DataFrame, name: str) -> str | tzinfo | None:
    """Zone of a column, as far as its type tells it."""
    if native.implementation.is_pandas():
        # Not the schema's: narwhals reads it out of the type's text, and not every zone's name.
        zone: str | tzinfo | None = getattr(table[name].dtype, "tz", None)
        return zone
    return getattr(native.schema[name], "time_zone", None)


def _is_time(native: Any, name: str) -> bool:
    if native.implementation.is_pandas():
        return pd.api.types.is_datetime64_any_dtype(native[name].to_native().dtype)
    return isinstance(native.schema[name], (nw.Datetime, nw.Date))


def _zone_of_cells(column: "pd.Series[Any]", name: str) -> str | None:
    """Zone that cells tell where the column does not: UTC, or None where they tell none.

    Raises:
        DataError: They have another offset: the zone, and so how to go on, would be lost.
    """
    known = column.dropna()
    if not len(known) or pd.api.types.is_datetime64_any_dtype(column.dtype):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is no date is refused with its row later
        try:
            first = getattr(pd.to_datetime(known.iloc[0], errors="coerce"), "tzinfo", None)
        except (ValueError, TypeError, OverflowError):
            return None
        if first is None:
            return None
        try:
            zone = getattr(pd.to_datetime(known, errors="coerce").dtype, "tz", None)
        except (ValueError, TypeError, OverflowError):  # several offsets in one column
            zone = None
    if str(zone) == "UTC":
        return "UTC"
    raise DataError(
        f"data.date_column={name}: {quote(known.iloc[0])} has an offset from UTC, and the "
        "column has no time zone to go on in: make it one, pd.to_datetime(df[NAME], "
        "utc=True).dt.tz_convert('Europe/Berlin') with your zone."
    )


def _sort(table: pd.DataFrame, layout: str, date_column: str) -> tuple[pd.DataFrame, Rows]:
    """Put rows in order of series and time; returns where each of them was too."""
    stamps = table[date_column].to_numpy()
    keys = [stamps]
    if layout == "long":
        ids = table[ID_COLUMN]
        codes, _ = pd.factorize(ids.astype(str).where(ids.notna()), sort=True)
        keys.append(codes)
    rows = np.lexsort(keys).astype(np.intp)
    return table.iloc[rows].reset_index(drop=True), rows
