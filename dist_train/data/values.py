"""Numbers of a series: every one is finite and fits float32, or the run is refused.

Shape legend (this file):
    T  time steps     N  variates
"""

import numpy as np
import numpy.typing as npt
import pandas as pd

from dist_train.data.config import DataError, Missing, quote
from dist_train.data.dates import Dates, show

Values = npt.NDArray[np.float64]
Rows = npt.NDArray[np.intp]

_LARGEST = float(np.finfo(np.float32).max)


def read_values(
    table: pd.DataFrame,
    dates: Dates,
    missing: Missing,
    sentinels: tuple[float, ...] = (),
    notes: list[str] | None = None,
    where: str = "",
    rows: Rows | None = None,
) -> Values:
    """Turn the variates of one series into numbers.

    Args:
        table: One column per variate. T rows.
        dates: Time stamps, for messages. Shape (T,).
        missing: Refuse missing and infinite values, or fill them: as
            :attr:`dist_train.data.config.DataConfig.missing` says, at the ends with the nearest
            value.
        sentinels: Numbers that stand for a missing value. They are kept, as benchmarks do,
            where ``missing`` is error.
        notes: What was accepted is appended here.
        where: Which series, for messages, such as `` of series 'a'``.
        rows: Position of each row in the file, for messages; None: as in ``table``. Shape (T,).

    Returns:
        Finite numbers. Shape (T, N), float64.

    Raises:
        DataError: Text, a missing or infinite value, a column without any, a number too large.
    """
    accepted = notes if notes is not None else []
    file_rows = np.arange(len(table)) if rows is None else rows
    values_TN = np.empty(table.shape, dtype=np.float64)
    for n, column in enumerate(table.columns):
        values_TN[:, n] = _numbers(table[column], column, where, file_rows)
    missing_TN = ~np.isfinite(values_TN)
    sentinel_TN = np.isin(values_TN, sentinels)
    if sentinel_TN.any():
        t, n = np.argwhere(sentinel_TN)[0]
        treatment = "kept as published" if missing == "error" else "filled"
        accepted.append(
            f"{sentinel_TN.sum()} values{where} stand for a missing one "
            f"({', '.join(f'{number:g}' for number in sentinels)}), {treatment}; the first in "
            f"column {table.columns[n]!r}, row {file_rows[t] + 1} ({show(dates[t])})"
        )
        if missing != "error":
            missing_TN |= sentinel_TN
    for n, column in enumerate(table.columns):
        gaps_T = missing_TN[:, n]
        if not gaps_T.any():
            continue
        if gaps_T.all():
            raise DataError(
                f"column {quote(column)}{where} has no value at all: leave it out with "
                "data.columns."
            )
        t = int(gaps_T.argmax())
        if missing == "error":
            what = "no value" if np.isnan(values_TN[t, n]) else f"the value {values_TN[t, n]}"
            raise DataError(
                f"column {quote(column)}{where} has {what} at row {file_rows[t] + 1} "
                f"({show(dates[t])}), and {gaps_T.sum()} missing or infinite values in all: fill "
                "them, or set data.missing=interpolate or forward."
            )
        known, gaps = np.flatnonzero(~gaps_T), np.flatnonzero(gaps_T)
        if missing == "forward":
            newest = np.searchsorted(known, gaps) - 1
            values_TN[gaps, n] = values_TN[known[newest.clip(min=0)], n]
            how = "filled with the last one before"
        else:
            values_TN[gaps, n] = np.interp(gaps, known, values_TN[known, n])
            how = "interpolated: a window that ends in such a gap knows what follows it"
        accepted.append(f"{len(gaps)} missing values of column {column!r}{where} {how}")
    _refuse_too_large(values_TN, table, where, file_rows)
    return values_TN


def clean_numbers(column: "pd.Series[float]", sentinels: tuple[float, ...] = ()) -> Values | None:
    """Read a column that :func:`read_values` has nothing to say about; None for any other.

    For the values of many series at once: that function looks at each of them.

    Returns:
        Finite numbers. Shape (T,), float64.
    """
    if not pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column):
        return None
    values_T = np.asarray(column.to_numpy(na_value=np.nan), dtype=np.float64)
    # Not a number is not below anything.
    is_clean = (np.abs(values_T) <= _LARGEST).all() and not np.isin(values_T, sentinels).any()
    return values_T if is_clean else None


def _numbers(column: "pd.Series[float]", name: str, where: str, file_rows: Rows) -> Values:
    """One column as float64, NaN where it is empty."""
    if pd.api.types.is_datetime64_any_dtype(column):
        cells, bad = column, np.ones(len(column), dtype=bool)
    else:
        cells = pd.to_numeric(column, errors="coerce")
        bad = (cells.isna() & column.notna()).to_numpy()
    if bad.any():
        t = int(bad.argmax())
        raise DataError(
            f"column {quote(name)}{where} has {quote(column.iloc[t])} at row {file_rows[t] + 1}, "
            "which is not a number: correct it, or leave the column out with data.columns."
        )
    return np.asarray(cells.to_numpy(na_value=np.nan), dtype=np.float64)


def _refuse_too_large(values: Values, table: pd.DataFrame, where: str, file_rows: Rows) -> None:
    too_large_TN = np.abs(values) > _LARGEST
    if too_large_TN.any():
        t, n = np.argwhere(too_large_TN)[0]
        raise DataError(
            f"column {quote(table.columns[n])}{where} has {values[t, n]:g} at row "
            f"{file_rows[t] + 1}, more than float32 can hold ({_LARGEST:.3g}): use a larger unit."
        )
