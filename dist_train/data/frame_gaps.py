"""What is missing in a frame: skipped time stamps get rows, and what will be filled is known.

Shape legend (this file):
    T  rows of the frame     N  variates
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from dist_train.data.dates import Dates, follows, infer_frequency
from dist_train.data.values import Rows

ID_COLUMN = "unique_id"


@dataclass(frozen=True, kw_only=True)
class Filled:
    """A value that the user did not give."""

    row: int
    """Position in the series, filled rows counted."""

    column: str
    """As the user calls it."""

    date: np.datetime64


def newest_filled(
    table: pd.DataFrame, layout: str, date_column: str, columns: Sequence[str], name: str
) -> dict[str, Filled]:
    """Find the newest value of each series that will be filled.

    Args:
        table: In order of series and time, with rows for skipped time stamps.
        layout: wide or long.
        date_column: Its time stamps.
        columns: Its variates.
        name: Id of the one series of a wide table.

    Returns:
        By id of the series; those that lack nothing are left out.
    """
    numbers = [pd.to_numeric(table[column], errors="coerce") for column in columns]
    cells = [part.to_numpy(dtype=np.float64, na_value=np.nan) for part in numbers]
    missing_TN = ~np.isfinite(np.stack(cells, axis=1))
    if not missing_TN.any():
        return {}
    ids = table[ID_COLUMN].astype(str) if layout == "long" else pd.Series(name, index=table.index)
    found = {}
    for id_, positions in table.groupby(ids, sort=True).indices.items():
        odd = np.argwhere(missing_TN[positions])
        if len(odd):
            row, number = (int(part) for part in odd[-1])
            date = table[date_column].to_numpy()[positions[row]]
            found[str(id_)] = Filled(row=row, column=columns[number], date=date)
    return found


def fill_gaps(
    table: pd.DataFrame, rows: Rows, layout: str, date_column: str, frequency: str | None
) -> tuple[pd.DataFrame, Rows]:
    """Add a row without values for every time stamp that was skipped.

    Args:
        table: In order of series and time.
        rows: Where each row was in the frame of the user. Shape (T,).
        layout: wide or long.
        date_column: Its time stamps.
        frequency: Of the training; None: irregular, and nothing is skipped.

    Returns:
        The table, and where each row was; a new one has the place of the next.
    """
    if frequency is None:
        return table, rows
    ids = table[ID_COLUMN].astype(str) if layout == "long" else pd.Series("", index=table.index)
    parts, places = [], []
    for positions in table.groupby(ids, sort=True).indices.values():
        own, seen = table.iloc[positions], rows[positions]
        grid = _grid_around(own[date_column].to_numpy(), frequency)
        if grid is not None:
            at = np.searchsorted(own[date_column].to_numpy(), grid)
            own = own.set_index(date_column).reindex(grid).rename_axis(date_column).reset_index()
            if layout == "long":
                own[ID_COLUMN] = table[ID_COLUMN].iloc[positions[0]]
            own, seen = own[list(table.columns)], seen[at]
        parts.append(own)
        places.append(seen)
    return pd.concat(parts, ignore_index=True), np.concatenate(places)


def _grid_around(dates: Dates, frequency: str) -> Dates | None:
    """All stamps from first to last, where those that are there lie on them and are most of them.

    One wrong year would otherwise ask for millions of values that nobody knows.
    """
    if len(dates) < 2 or follows(dates, frequency) or infer_frequency(dates) is not None:
        return None
    if (np.diff(dates.astype(np.int64)) <= 0).any():
        return None
    stamps_ns = dates.astype(np.int64)
    if stamps_ns[-1] - stamps_ns[0] > 2 * len(dates) * np.median(np.diff(stamps_ns)):
        return None
    grid: Dates = pd.date_range(dates[0], dates[-1], freq=frequency).as_unit("ns").to_numpy()
    return grid if np.isin(dates, grid).all() else None
