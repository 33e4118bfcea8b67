"""The two layouts of a table: one column per variate (wide), or one row per value (long)."""

import difflib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from dist_train.data.config import DataError, SeriesConfig, quote
from dist_train.data.dates import Dates, parse_dates, review_dates
from dist_train.data.values import Rows, Values, clean_numbers, read_values


def split_table(
    table: pd.DataFrame,
    config: SeriesConfig,
    name: str,
    sentinels: tuple[float, ...],
    notes: list[str],
    rows: Rows | None = None,
) -> Iterator[tuple[str, Dates, Values, tuple[str, ...]]]:
    """Cut a table into series and check each.

    Args:
        table: A date column and variates (wide), or unique_id, ds and y (long; the rows of one
            series in time order, series in any order).
        config: Layout, columns, and what to do about missing values and dates.
        name: Id of the one series of a wide table.
        sentinels: Numbers that stand for a missing value.
        notes: What was accepted is appended here.
        rows: Position of each row where the user sees it, for messages; None: 0, 1, 2...

    Yields:
        Id, time stamps (T,), values (T, N) and variate names of each series, ids in order.

    Raises:
        DataError: A column is missing or unknown, or the dates or values of a series are refused.
    """
    names = [str(column) for column in table.columns]
    table = table.set_axis(names, axis=1)
    layout = config.layout
    if layout == "auto":
        layout = "long" if {"unique_id", "y"} <= set(names) else "wide"
    date_column = config.date_column or ("date" if layout == "wide" else "ds")
    if date_column not in names:
        raise DataError(
            f"data.date_column={date_column}: there is no such column, the columns are "
            f"{_listing(names)}: set data.date_column to the one with the dates"
            + (
                " (is the file separated by something else than commas?)."
                if len(names) == 1
                else "."
            )
        )
    if layout == "wide":
        columns = _choose_columns([column for column in names if column != date_column], config)
        dates = parse_dates(table[date_column], date_column)
        review_dates(dates, config.dates, notes, rows=rows)
        values = read_values(table[columns], dates, config.missing, sentinels, notes, rows=rows)
        yield name, dates, values, tuple(columns)
        return
    value = _long_value_column(names, date_column, config, notes)
    ids = table["unique_id"]
    check_ids(ids, rows)
    stamps = parse_dates(table[date_column], date_column)
    clean_T = clean_numbers(table[value], sentinels)
    for id_, positions in table.groupby(ids.astype(str), sort=True).indices.items():
        own = np.asarray(positions, dtype=np.intp)
        seen = own if rows is None else rows[own]
        where = f" of series {quote(id_)}"
        if len(own) < 2:
            raise DataError(
                f"series {quote(id_)} has 1 row: a series needs at least 2, or remove it."
            )
        review_dates(stamps[own], config.dates, notes, where, seen)
        if clean_T is not None:
            values = clean_T[own, None]
        else:
            values = read_values(
                table[[value]].iloc[own], stamps[own], config.missing, sentinels, notes, where, seen
            )
        yield str(id_), stamps[own], values, (value,)


def check_ids(ids: "pd.Series[Any]", rows: Rows | None = None) -> None:
    """Refuse a row that belongs to no series.

    Args:
        ids: Of the rows. Shape (T,).
        rows: Where each was in the file or frame; None: in this order. Shape (T,).

    Raises:
        DataError: There is one.
    """
    if ids.isna().any():
        row = int(ids.isna().to_numpy().argmax())
        row = (row if rows is None else int(rows[row])) + 1
        raise DataError(f"column 'unique_id' has no value at row {row}: name the series there.")


def _long_value_column(
    names: list[str], date_column: str, config: SeriesConfig, notes: list[str]
) -> str:
    if "unique_id" not in names:
        raise DataError(
            f"data.layout=long: there is no column 'unique_id', the columns are "
            f"{_listing(names)}: rename the one with the series' names, or use data.layout=wide."
        )
    left = [column for column in names if column not in {"unique_id", date_column}]
    chosen = _choose_columns(left, config) if config.columns is not None else ["y"]
    if chosen[0] not in left or len(chosen) > 1:
        raise DataError(
            f"data.columns={config.columns}: a long file is read as one variate per series, and "
            f"there are {_listing(left)}: set data.columns to one of them."
        )
    unused = [column for column in left if column != chosen[0]]
    if unused:
        notes.append(
            f"columns not used: {_listing(unused)} (a long file is one variate per series)"
        )
    return chosen[0]


def _choose_columns(available: list[str], config: SeriesConfig) -> list[str]:
    """The variates in the user's order, or all."""
    columns = available if config.columns is None else config.columns
    if not columns:
        raise DataError(
            "data.columns: there is no variate beside the date column: at least one is needed."
        )
    for column in columns:
        if column not in available:
            near = difflib.get_close_matches(column, available, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise DataError(
                f"data.columns: there is no column {column!r}: {hint}"
                f"The columns are {_listing(available)}."
            )
    if len(set(columns)) < len(columns):
        raise DataError(f"data.columns={columns} names a column twice: name each once.")
    return list(columns)


def _listing(names: list[str]) -> str:
    shown = ", ".join(name if len(name) <= 60 else f"{name[:60]}..." for name in names[:12])
    return f"{shown} and {len(names) - 12} more" if len(names) > 12 else shown
