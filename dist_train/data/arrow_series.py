"""A source as a folder of memory-mapped Arrow: read by any number of processes, copied by none.

``series.arrow`` holds one record batch for each series: time stamps, values in original units, and
the same standardised on the series' training rows. ``source.json`` says what they are, and is
written last: a folder without it is none.

Shape legend (this file):
    T  time steps of one series
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dist_train.data.catalog import Borders
from dist_train.data.config import DataError, SourceConfig
from dist_train.data.series import Series, SeriesSet
from dist_train.data.splits import Scaler, borders
from dist_train.data.standardise import Standardised, standardise
from memory_index.atomic_file import replacing, sha256_of, sync_folder, write_text
from memory_index.manifest import checksum_of

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = 1
FACTS_FILE, SERIES_FILE = "source.json", "series.arrow"
_REBUILD = "build it anew with timellm data build"


@dataclass(frozen=True, kw_only=True)
class Built:
    """What ``source.json`` says."""

    name: str
    frequency: str | None
    seasonal_period: int
    description: str
    borders: Borders
    checksum: str
    """Of what the series were read from, as :class:`SeriesSet` has it."""

    notes: tuple[str, ...]
    ids: tuple[str, ...]
    rows: tuple[int, ...]
    """Rows of each series."""

    mean: tuple[float, ...]
    """Mean of the training rows of each series, original units."""

    scale: tuple[float, ...]
    """Their deviation."""

    constant: tuple[bool, ...]
    """Whether they are all equal."""

    bytes: int
    """Size of ``series.arrow``."""

    sha256: str
    """Its checksum."""


def is_built(path: Path) -> bool:
    """Whether a folder holds a source that :func:`write_series` has written."""
    return (path / FACTS_FILE).is_file()


def write_series(folder: Path, name: str, parts: Iterable[SeriesSet]) -> Built:
    """Write a source, part after part: memory is needed for the largest part alone.

    Args:
        folder: Becomes the source; may exist, empty.
        name: Name of the source.
        parts: Its series, univariate, each set of one frequency and of the first one's splits.

    Raises:
        DataError: The folder holds something, parts differ in frequency, or a series cannot be
            standardised.
        OSError: It cannot be written.
    """
    import pyarrow as pa

    if folder.exists() and any(folder.iterdir()):
        raise DataError(f"{folder} is not empty: name another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    columns = {"ids": [], "rows": [], "mean": [], "scale": [], "constant": []}  # type: ignore[var-annotated]
    first: SeriesSet | None = None
    notes: list[str] = []
    checksums: list[str] = []
    schema = pa.schema([("ds", pa.timestamp("ns")), ("y", pa.float64()), ("z", pa.float32())])
    with (
        replacing(folder / SERIES_FILE) as beside,
        pa.OSFile(str(beside), "wb") as sink,
        pa.ipc.new_file(sink, schema) as writer,
    ):
        for part in parts:
            first = first or part
            if part.frequency != first.frequency:
                raise DataError(
                    f"{first.series[0].id!r} has the frequency {first.frequency}, "
                    f"{part.series[0].id!r} {part.frequency}: make them sources of their own."
                )
            notes += part.notes
            checksums.append(part.checksum)
            for series in part.series:
                scaled = _scaled(series, first.borders)
                writer.write_batch(_batch(series, scaled, schema))
                columns["ids"].append(series.id)
                columns["rows"].append(len(series.values))
                columns["mean"].append(float(scaled.scaler.mean[0]))
                columns["scale"].append(float(scaled.scaler.scale[0]))
                columns["constant"].append(bool(scaled.scaler.constant))
    if first is None:
        raise DataError(f"{name}: there is no series to write.")
    file = folder / SERIES_FILE
    built = Built(
        name=name,
        frequency=first.frequency,
        seasonal_period=first.seasonal_period,
        description=first.description,
        borders=first.borders,
        checksum=checksums[0] if len(checksums) == 1 else checksum_of({"parts": checksums}),
        notes=tuple(notes),
        bytes=file.stat().st_size,
        sha256=sha256_of(file),
        **{key: tuple(values) for key, values in columns.items()},
    )
    content = {"format": FORMAT, **_plain(built)}
    write_text(folder / FACTS_FILE, json.dumps(content | {"own": checksum_of(content)}))
    sync_folder(folder)
    return built


def read_facts(folder: Path) -> Built:
    """Read what a built source is, without its values.

    Raises:
        DataError: It is none, altered, incomplete, or of another format.
    """
    path = folder / FACTS_FILE
    try:
        content = json.loads(path.read_bytes())
        own = content.pop("own")
        known = content.pop("format") == FORMAT
        if not known or checksum_of({"format": FORMAT, **content}) != own:
            raise DataError(f"{path}: altered, or of another version; {_REBUILD}.")
        lists = {key: tuple(value) for key, value in content.items() if isinstance(value, list)}
        built = Built(**content | lists)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); {_REBUILD}.") from error
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: not what a built source has; {_REBUILD}.") from error
    file = folder / SERIES_FILE
    if not file.is_file() or file.stat().st_size != built.bytes:
        raise DataError(f"{file}: missing, or not of its {built.bytes} bytes; {_REBUILD}.")
    return built


def verify(folder: Path) -> Built:
    """Read every byte of a built source and compare its checksum.

    Raises:
        DataError: As :func:`read_facts`, or the values have been altered.
    """
    built = read_facts(folder)
    if sha256_of(folder / SERIES_FILE) != built.sha256:
        raise DataError(f"{folder / SERIES_FILE}: altered since it was written; {_REBUILD}.")
    return built


def open_series(folder: Path, source: SourceConfig, name: str) -> SeriesSet:
    """Open a built source; its values stay on the disk until they are read.

    Args:
        folder: The source.
        source: What the run says of it: ``description`` and ``seasonal_period`` override what it
            was built with; how it is read and split was decided then.
        name: Name of the set.

    Raises:
        DataError: As :func:`read_facts`, or ``splits``, ``columns`` or ``layout`` ask for what
            only building decides.
    """
    built = read_facts(folder)
    _refuse_decided(folder, source, built)
    reader = _reader(str((folder / SERIES_FILE).resolve()), built.sha256)
    if reader.num_record_batches != len(built.ids):
        raise DataError(
            f"{folder}: {reader.num_record_batches} series, not {len(built.ids)}; {_REBUILD}."
        )
    description = built.description if source.description is None else source.description
    return SeriesSet(
        name=name,
        series=tuple(_mapped(reader, built)),
        frequency=built.frequency,
        seasonal_period=source.seasonal_period or built.seasonal_period,
        description=description,
        borders=built.borders,
        checksum=built.checksum,
        notes=built.notes,
    )


def _scaled(series: Series, split: Borders) -> Standardised:
    train = borders(len(series.values), split, f"series {series.id!r}")["train"]
    return standardise(series.values, train, series.columns, series.id)


def _batch(series: Series, scaled: Standardised, schema: "pa.Schema") -> "pa.RecordBatch":
    import pyarrow as pa

    arrays = [
        pa.array(series.dates.astype("datetime64[ns]")),
        pa.array(np.ascontiguousarray(series.values[:, 0])),
        pa.array(np.ascontiguousarray(scaled.values[:, 0])),
    ]
    return pa.record_batch(arrays, schema=schema)


@cache
def _reader(path: str, sha256: str) -> "pa.RecordBatchFileReader":
    """Map a file once for each process; ``sha256`` tells one that was built anew."""
    import pyarrow as pa

    del sha256
    try:
        return pa.ipc.open_file(pa.memory_map(path))
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{path}: not a file of series; {_REBUILD}.") from error


def _mapped(reader: "pa.RecordBatchFileReader", built: Built) -> Iterator[Series]:
    facts = zip(built.ids, built.rows, built.mean, built.scale, built.constant, strict=True)
    for number, (id_, rows, mean, scale, constant) in enumerate(facts):
        batch = reader.get_batch(number)
        if batch.num_rows != rows:
            raise DataError(f"series {id_!r} has {batch.num_rows} rows, not {rows}; {_REBUILD}.")
        dates, values, scaled = (
            batch.column(place).to_numpy(zero_copy_only=True) for place in range(3)
        )
        scaler = Scaler(
            mean=np.array([mean]), scale=np.array([scale]), constant=(0,) if constant else ()
        )
        yield Series(
            id=id_,
            dates=dates,
            values=values[:, None],
            columns=("y",),
            standardised=Standardised(scaler=scaler, values=scaled[:, None]),
        )


def _refuse_decided(folder: Path, source: SourceConfig, built: Built) -> None:
    plain = SourceConfig()
    decided = ("layout", "date_column", "columns", "missing", "dates")
    for key in decided:
        if getattr(source, key) != getattr(plain, key):
            raise DataError(
                f"{key}={getattr(source, key)!r}: decided when {folder} was built; leave it out, "
                "or build it anew with it."
            )
    if source.splits is not None and tuple(source.splits) != tuple(built.borders):
        raise DataError(
            f"splits={source.splits}: {folder} was built with {list(built.borders)}; leave it out, "
            "or build it anew with it."
        )


def _plain(built: Built) -> dict[str, Any]:
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in vars(built).items()
    }
