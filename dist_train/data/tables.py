"""Read one CSV or Parquet file into a table, and refuse what cannot be one."""

import csv
import warnings
from pathlib import Path

import pandas as pd

from dist_train.data.config import DataError


def read_table(path: Path, label: str) -> tuple[pd.DataFrame, list[str]]:
    """Read a file; the format is told by its ending.

    Args:
        path: A ``.parquet`` / ``.pq`` file, or a comma-separated text file with a header line.
        label: How the user named the file, for messages; such as ``data.path=a.csv``.

    Returns:
        The table, and notes on what a reader of the report has to know.

    Raises:
        DataError: Missing, a folder, empty, only a header, one row, repeated column names, not
            readable in its format.
    """
    if not path.exists():
        raise DataError(f"{label} does not exist: check the path.")
    if path.is_dir():
        raise DataError(f"{label} is a folder: name a CSV or Parquet file in it.")
    if path.stat().st_size == 0:
        raise DataError(f"{label} is empty: a header line and rows are needed.")
    notes: list[str] = []
    if path.suffix.lower() in {".parquet", ".pq"}:
        table = _read_parquet(path, label)
    else:
        table = _read_csv(path, label, notes)
    if len(table) < 2:
        raise DataError(
            f"{label} has {len(table)} rows below its header: a series needs at least 2."
        )
    return table, notes


def _read_parquet(path: Path, label: str) -> pd.DataFrame:
    import pyarrow

    try:
        table = pd.read_parquet(path)
    except (pyarrow.ArrowException, OSError) as failure:
        raise DataError(
            f"{label} is not a readable Parquet file ({failure}): write it again, or "
            "give it the ending .csv if it is text."
        ) from failure
    if table.index.name is not None:  # pandas hides an index such as the dates in the file
        table = table.reset_index()
    table.columns = table.columns.astype(str)
    _refuse_repeated(label, list(table.columns))
    return table


def _read_csv(path: Path, label: str, notes: list[str]) -> pd.DataFrame:
    encoding = "utf-8-sig"  # Excel opens a UTF-8 file with a byte order mark
    try:
        header = _header(path, label, encoding)
        table = _parse_csv(path, label, encoding)
    except UnicodeDecodeError:
        # Latin-1 accepts any bytes. Only column names can be spelt wrongly by it: numbers and
        # dates are ASCII. The published weather.csv is such a file.
        encoding = "latin-1"
        notes.append(f"{path.name} is not UTF-8; it was read as Latin-1")
        header = _header(path, label, encoding)
        table = _parse_csv(path, label, encoding)
    _refuse_repeated(label, header)
    return table


def _header(path: Path, label: str, encoding: str) -> list[str]:
    with path.open(encoding=encoding, newline="") as file:
        try:
            return next(csv.reader(file), [])
        except csv.Error as failure:
            raise _unreadable(label, failure) from failure


def _parse_csv(path: Path, label: str, encoding: str) -> pd.DataFrame:
    try:
        with warnings.catch_warnings():
            # pandas only warns when it drops the fields of rows longer than the header.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            warnings.simplefilter("ignore", pd.errors.DtypeWarning)
            return pd.read_csv(path, encoding=encoding, index_col=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, pd.errors.ParserWarning) as failure:
        raise _unreadable(label, failure) from failure


def _unreadable(label: str, failure: Exception) -> DataError:
    reason = " ".join(str(failure).split())
    return DataError(
        f"{label} is not a readable CSV file ({reason}): every line needs as many "
        "comma-separated fields as the header."
    )


def _refuse_repeated(label: str, names: list[str]) -> None:
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise DataError(
            f"{label} has more than one column named {repeated[0]!r}: rename them, so "
            "that each column has a name of its own."
        )
