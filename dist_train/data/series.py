"""Series as the rest of the code sees them: checked dates and finite numbers.

Shape legend (this file):
    T  time steps of one series     N  variates

Rows are counted from 1 in messages, the header line not counted.
"""

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from dist_train import local_copy
from dist_train.data.catalog import Borders, DatasetEntry, find_file, lookup
from dist_train.data.config import DataConfig, DataError, SeriesConfig
from dist_train.data.dates import Dates, follows, infer_frequency, season_of, tells_frequency
from dist_train.data.layout import split_table
from dist_train.data.standardise import Standardised
from dist_train.data.tables import read_table
from dist_train.data.values import Rows, Values
from memory_index.atomic_file import sha256_of


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Series:
    """One series with its time stamps."""

    id: str
    """Name of the series: the data set's, or the ``unique_id`` of a long file."""

    dates: Dates
    """Time stamps. Shape (T,), datetime64[ns]."""

    values: Values
    """Finite numbers in original units. Shape (T, N), float64."""

    columns: tuple[str, ...]
    """Names of the N variates."""

    standardised: Standardised | None = None
    """The values on the scale of the training rows, where that was made ahead; None: not yet."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SeriesSet:
    """All series of a run, with what is known about them."""

    name: str
    """Name of the data set, or of the user's file."""

    series: tuple[Series, ...]
    """At least one; all with the same number of variates."""

    frequency: str | None
    """Time between rows as a pandas alias; None: irregular."""

    seasonal_period: int
    """Rows per season, at least 1."""

    description: str
    """Text for the prompt; may be empty."""

    borders: Borders
    """Train, validation, test: shares of the rows, or counts of rows."""

    checksum: str
    """SHA-256 of the file, or of the values where there is no file."""

    notes: tuple[str, ...] = ()
    """What a reader of the report has to know: defects that were accepted, values filled."""


def data_file(config: DataConfig) -> Path | None:
    """The file that ``data`` names; None: the data come out of a package.

    Raises:
        DataError: The file of a named data set is nowhere; one of ``data.path`` may be missing.
    """
    if config.path is not None:
        return Path(config.path).expanduser()
    entry = lookup(config.dataset)
    return None if entry.file is None else find_file(entry, config.root)


def load_series(config: DataConfig) -> SeriesSet:
    """Read and check what ``data`` names.

    Raises:
        DataError: The data cannot be used as they are; the message names the place and the remedy.
    """
    file = data_file(config)
    entry = lookup(config.dataset) if config.path is None else None
    if file is None:
        assert entry is not None
        return from_table(_embedded(entry), config, name=entry.name, entry=entry)
    label = f"data.path={config.path}" if entry is None else f"data.dataset={entry.name} ({file})"
    path = local_copy.find(file)
    table, notes = read_table(path, label)
    checksum = _checksum(path, label)
    if entry is not None and entry.sha256 not in (None, checksum):
        note = f"{file.name} is not the published file: its checksum is {checksum}"
        warnings.warn(f"data.dataset={entry.name}: {note}", stacklevel=2)
        notes.append(note)
    return from_table(
        table,
        config,
        name=file.stem if entry is None else entry.name,
        entry=entry,
        checksum=checksum,
        notes=tuple(notes),
    )


def checksum_of_data(config: DataConfig) -> str:
    """The checksum that :func:`load_series` gives, without making series of the file.

    Raises:
        DataError: There is no such file.
    """
    file = data_file(config)
    if file is None:
        return load_series(config).checksum
    return _checksum(local_copy.find(file), f"data.path={file}")


def checksum_of_parts(checksums: Sequence[str]) -> str:
    """The checksum of series that come from several files, of the files' own in their order."""
    if len(checksums) == 1:
        return checksums[0]
    return hashlib.sha256("\n".join(checksums).encode()).hexdigest()


def from_table(
    table: pd.DataFrame,
    config: SeriesConfig,
    *,
    name: str,
    entry: DatasetEntry | None = None,
    checksum: str | None = None,
    notes: tuple[str, ...] = (),
    rows: Rows | None = None,
    frequency: str | None = None,
) -> SeriesSet:
    """Check a table and make series of it.

    Args:
        table: A date column and variates (wide), or unique_id, ds and y (long).
        config: Which columns, and what to do about missing values and dates.
        name: Name of the set.
        entry: What the catalog knows about it.
        checksum: Of the file; None: made from the values.
        notes: What reading the file already found.
        rows: Position of each row where the user sees it, for messages; None: 0, 1, 2...
        frequency: What it is if the time stamps follow it; a few of them may follow several.

    Raises:
        DataError: As :func:`load_series`.
    """
    if entry is not None and entry.dates == "as_is":
        config = replace(config, dates="as_is")
    found = list(notes)
    sentinels = entry.missing_sentinels if entry is not None else ()
    series = tuple(
        Series(id=id_, dates=dates, values=values, columns=columns)
        for id_, dates, values, columns in split_table(table, config, name, sentinels, found, rows)
    )
    frequency = _common_frequency(series, config, frequency)
    if frequency is None and entry is not None:
        frequency = entry.frequency  # a published set with a defect still has its rhythm
    if config.seasonal_period is not None:
        season = config.seasonal_period
    elif entry is not None and frequency == entry.frequency:
        season = entry.seasonal_period
    else:
        season = season_of(frequency)
    borders: Borders = entry.borders if entry is not None else (0.7, 0.1, 0.2)
    if config.splits is not None:
        borders = (config.splits[0], config.splits[1], config.splits[2])
    description = config.description
    if description is None:
        description = entry.description if entry is not None else ""
    return SeriesSet(
        name=name,
        series=series,
        frequency=frequency,
        seasonal_period=season,
        description=description,
        borders=borders,
        checksum=checksum if checksum is not None else _checksum_of_values(series),
        notes=tuple(found),
    )


def _checksum(path: Path, label: str) -> str:
    try:
        return sha256_of(path)
    except OSError as failure:
        raise DataError(
            f"{label} was taken away while it was read ({failure.strerror}): check the path."
        ) from failure


def _embedded(entry: DatasetEntry) -> pd.DataFrame:
    """The half-hourly demand of Victoria; its package is imported only when it is asked for."""
    assert entry.name == "vic_elec", entry.name
    import tsdata.fpp3

    table: pd.DataFrame = tsdata.fpp3.vic_elec
    return table.rename(columns={"Time": "date"})[["date", "Demand", "Temperature"]]


def _common_frequency(
    series: tuple[Series, ...], config: SeriesConfig, expected: str | None
) -> str | None:
    """The one frequency of all series; None where ``as_is`` allows that there is none."""
    frequencies = {
        one.id: expected
        if expected and follows(one.dates, expected)
        else infer_frequency(one.dates)
        for one in series
    }
    telling = {one.id for one in series if tells_frequency(one.dates, frequencies[one.id])}
    known = {frequencies[id_] for id_ in telling or frequencies} - {None}
    if len(known) == 1:  # series too short to tell theirs may follow that of the others
        common = next(iter(known))
        assert common is not None
        short = (one for one in series if one.id not in telling)
        frequencies |= {one.id: common for one in short if follows(one.dates, common)}
    if len(set(frequencies.values())) == 1:
        return next(iter(frequencies.values()))
    if config.dates == "strict":
        first, second = _two_that_differ(frequencies)
        raise DataError(
            f"data.dates=strict: series {first!r} has the frequency {frequencies[first]}, series "
            f"{second!r} {frequencies[second]}: forecast them in separate runs, or take rows in "
            "order with data.dates=as_is."
        )
    return None


def _two_that_differ(frequencies: dict[str, str | None]) -> tuple[str, str]:
    first = next(iter(frequencies))
    return first, next(id_ for id_ in frequencies if frequencies[id_] != frequencies[first])


def _checksum_of_values(series: tuple[Series, ...]) -> str:
    digest = hashlib.sha256()
    for one in series:
        digest.update(np.ascontiguousarray(one.values).tobytes())
    return digest.hexdigest()
