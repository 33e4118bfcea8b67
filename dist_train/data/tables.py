"""Read one CSV or Parquet file into a table, and refuse what cannot be one."""

import csv
import os
import re
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd

from dist_train.data.config import DataError, quote

_ID_COLUMN = "unique_id"

_COMPRESSED = {".gz", ".bz2", ".zip", ".xz", ".zst", ".tar", ".tgz", ".7z"}
_UNNAMED_INDEX = re.compile(r"__index_level_\d+__")
_OTHER_ENCODINGS = (b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")  # UTF-16 and UTF-32
_BYTES_PER_CELL = 8
# Arrow's table, pandas', and the float64 values that are made of it.
_COPIES = 3
_MISSING = [  # what pandas takes for a missing cell
    "", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN",
    "<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null",
]  # fmt: skip


def read_table(path: Path, label: str) -> tuple[pd.DataFrame, list[str]]:
    """Read a file; the format is told by its ending.

    Args:
        path: A ``.parquet`` / ``.pq`` file, or a comma-separated text file with a header line.
        label: How the user named the file, for messages; such as ``data.path=a.csv``.

    Returns:
        The table, and notes on what a reader of the report has to know.

    Raises:
        DataError: Missing, a folder, empty, only a header, one row, repeated column names, not
            separated by commas, not readable in its format.
    """
    try:
        return _read(path, label)
    except MemoryError as failure:
        raise DataError(
            f"{label} needs more memory than there is: leave columns or rows out of the file."
        ) from failure
    except (OSError, ValueError) as failure:
        if isinstance(failure, DataError):
            raise
        # Also a file that is taken away, or may not be read.
        reason = getattr(failure, "strerror", None) or " ".join(str(failure).split())[:200]
        raise DataError(f"{label} cannot be read ({reason}): check the path.") from failure


def _read(path: Path, label: str) -> tuple[pd.DataFrame, list[str]]:
    if not path.exists():
        raise DataError(f"{label} does not exist: check the path.")
    if path.is_dir():
        raise DataError(f"{label} is a folder: name a CSV or Parquet file in it.")
    if not path.is_file():
        raise DataError(f"{label} is not a file: name a CSV or Parquet file.")
    if path.stat().st_size == 0:
        raise DataError(f"{label} is empty: a header line and rows are needed.")
    if path.suffix.lower() in _COMPRESSED:
        raise DataError(f"{label} is compressed: unpack it.")
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
    """Read the columns as they lie in the file.

    What pandas noted about them there is not followed: it hides columns that were its index, and
    raises errors of any kind where it has been altered.
    """
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            names = [str(name) for name in file.schema_arrow.names]
            refuse_repeated(label, names)
            _refuse_too_large(label, file.metadata.num_rows, file.metadata.num_columns)
            arrow = file.read(columns=None).replace_schema_metadata(None)
        arrow.validate(full=True)
        # As dates of Python, those after the year 9999 could not be read.
        table: pd.DataFrame = arrow.to_pandas(date_as_object=False)
    except MemoryError:
        raise
    except (
        pyarrow.ArrowException, OSError, ValueError, TypeError, KeyError, OverflowError,
        ImportError, RecursionError,
    ) as failure:  # fmt: skip
        if isinstance(failure, DataError):
            raise
        reason = " ".join(str(failure).split())[:200]
        raise DataError(
            f"{label} is not a readable Parquet file ({reason}): write it again, or "
            "give it the ending .csv if it is text."
        ) from failure
    table.columns = table.columns.astype(str)
    return table.loc[:, [not _UNNAMED_INDEX.fullmatch(name) for name in table.columns]]


def _refuse_too_large(label: str, rows: int, columns: int) -> None:
    """A Parquet file of some bytes can stand for more cells than memory holds."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    needed = rows * columns * _BYTES_PER_CELL * _COPIES
    if needed > memory:
        raise DataError(
            f"{label} has {rows} rows and {columns} columns, which need {needed / 2**30:.0f} GiB "
            f"of memory and there are {memory / 2**30:.0f}: leave columns or rows out of the file."
        )


def _read_csv(path: Path, label: str, notes: list[str]) -> pd.DataFrame:
    with path.open("rb") as file:
        if file.read(4).startswith(_OTHER_ENCODINGS):
            raise DataError(f"{label} is UTF-16 or UTF-32 text: save it as UTF-8.")
    encoding = "utf-8-sig"  # Excel opens a UTF-8 file with a byte order mark
    try:
        header = _header(path, label, encoding)
        table = _parse_csv(path, label, encoding, header)
    except UnicodeDecodeError:
        # Latin-1 accepts any bytes. Only column names can be spelt wrongly by it: numbers and
        # dates are ASCII. The published weather.csv is such a file.
        encoding = "latin-1"
        notes.append(f"{path.name} is not UTF-8; it was read as Latin-1")
        header = _header(path, label, encoding)
        table = _parse_csv(path, label, encoding, header)
    refuse_repeated(label, header)
    return table


def _header(path: Path, label: str, encoding: str) -> list[str]:
    with path.open(encoding=encoding, newline="") as file:
        try:
            rows = csv.reader(file)  # pandas, too, skips blank lines before the header
            header = next((row for row in rows if len(row) > 1 or "".join(row).strip()), [])
        except csv.Error as failure:
            raise _unreadable(label, failure) from failure
    for mark, named in ((";", "semicolons"), ("\t", "tabs")):
        if len(header) == 1 and mark in header[0]:
            raise DataError(
                f"{label} is separated by something else than commas, {named}: its header is "
                f"{quote(header[0])}. Save it with commas between fields, and points in numbers."
            )
    return header


def _parse_csv(path: Path, label: str, encoding: str, header: list[str]) -> pd.DataFrame:
    """Read the rows; of which type a column is, pandas guesses, but ids stay as they are written.

    It would guess piece by piece of a long file, and call a series 656 here and 00656 there.
    """
    options: dict[str, Any] = {}
    if _ID_COLUMN in header:
        own = {n: [""] if name == _ID_COLUMN else _MISSING for n, name in enumerate(header)}
        options = {"dtype": {_ID_COLUMN: str}, "keep_default_na": False, "na_values": own}
    try:
        with warnings.catch_warnings():
            # pandas only warns when it drops the fields of rows longer than the header.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            warnings.simplefilter("ignore", pd.errors.DtypeWarning)
            table: pd.DataFrame = pd.read_csv(
                path, encoding=encoding, index_col=False, compression=None, **options
            )
            return table
    except UnicodeDecodeError:
        raise
    except (ValueError, OverflowError, pd.errors.ParserWarning) as failure:
        raise _unreadable(label, failure) from failure


def _unreadable(label: str, failure: Exception) -> DataError:
    reason = " ".join(str(failure).split())[:200]
    return DataError(
        f"{label} is not a readable CSV file ({reason}): every line needs as many "
        "comma-separated fields as the header."
    )


def refuse_repeated(label: str, names: list[str]) -> None:
    """Refuse a header that names two columns alike.

    Args:
        label: How the user named the table, for messages.
        names: The header.

    Raises:
        DataError: It does; the message has the name.
    """
    repeated = sorted(name for name, count in Counter(names).items() if count > 1)
    if repeated:
        raise DataError(
            f"{label} has more than one column named {quote(repeated[0])}: rename them, so "
            "that each column has a name of its own."
        )
