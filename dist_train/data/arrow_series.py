"""A source as a folder of memory-mapped Arrow: read by any number of processes, copied by none.

``series.arrow`` holds one record batch for each series: time stamps, values in original units, and
the same standardised on the series' training rows. ``source.json`` says what they are, and is
written last: a folder without it is none.

Shape legend (this file):
    T  time steps of one series
"""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dist_train import local_copy
from dist_train.data.catalog import Borders
from dist_train.data.config import DataError, SeriesConfig, SourceConfig
from dist_train.data.dates import show
from dist_train.data.series import Series, SeriesSet
from dist_train.data.source_files import Joint
from dist_train.data.splits import Scaler, borders
from dist_train.data.standardise import Standardised, standardise
from memory_index.atomic_file import (
    leftovers,
    replacing,
    sha256_of,
    sweep,
    sync_folder,
    write_text,
)
from memory_index.manifest import checksum_of

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = 1
FACTS_FILE, SERIES_FILE = local_copy.SEAL, "series.arrow"
CORPUS_FILE = "sources.yaml"
"""Beside the folders of a corpus: the configuration that names them all."""

_REBUILD = "copy the whole folder again, or delete it and run timellm data build"


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

    settings: dict[str, Any]
    """What decided how they were read, see :func:`settings_of`."""

    notes: tuple[str, ...]
    begins: str
    """Time stamp of the oldest row of all series."""

    ends: str
    """That of the newest."""

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


def is_built(folder: Path) -> bool:
    """Whether a folder holds a source that :func:`write_series` has finished."""
    return (folder / FACTS_FILE).exists()


def is_source(folder: Path) -> bool:
    """Whether a folder holds a built source, or what is left of one."""
    return is_built(folder) or (folder / SERIES_FILE).exists()


def settings_of(source: SourceConfig) -> dict[str, Any]:
    """What of a source's entry decides what is built of it; the files have a checksum."""
    said = {item.name: getattr(source, item.name) for item in fields(SeriesConfig)}
    return {
        key: value
        for key, value in said.items()
        if key not in ("path", "percent") and (key != "dataset" or source.path is None)
    }


def make_room(folder: Path) -> None:
    """Delete what a build that was killed has left in a folder; nobody else may write to it.

    Raises:
        DataError: Something else lies there.
    """
    if not folder.exists():
        return
    ours = (FACTS_FILE, SERIES_FILE)
    if not (
        folder.is_dir()
        and {path.name for path in folder.iterdir()}
        <= {SERIES_FILE, *(path.name for path in leftovers(folder, ours))}
    ):
        raise DataError(f"{folder} exists and is no source: move it away, or name another folder.")
    sweep(folder, ours)


def write_series(
    folder: Path, name: str, parts: Iterable[SeriesSet], settings: dict[str, Any]
) -> Built:
    """Write a source, part after part: memory is needed for the largest part alone.

    Args:
        folder: Becomes the source; may exist, empty or with what a killed build has left.
        name: Name of the source.
        parts: Its series, univariate, all of the first part's splits.
        settings: What decided how they were read.

    Raises:
        DataError: The folder holds something else, there are no parts, or a series cannot be
            standardised.
        OSError: It cannot be written; nothing is left of it then.
    """
    make_room(folder)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        known, seen = _write_parts(folder / SERIES_FILE, parts)
        built = Built(
            name=name,
            frequency=known.frequency,
            seasonal_period=known.seasonal_period,
            description=known.description,
            borders=known.borders,
            checksum=known.checksum,
            settings=settings,
            notes=known.notes,
            begins=show(min(one.begins for one in seen)),
            ends=show(max(one.ends for one in seen)),
            ids=tuple(one.id for one in seen),
            rows=tuple(one.rows for one in seen),
            mean=tuple(one.mean for one in seen),
            scale=tuple(one.scale for one in seen),
            constant=tuple(one.constant for one in seen),
            bytes=(folder / SERIES_FILE).stat().st_size,
            sha256=sha256_of(folder / SERIES_FILE),
        )
        write_text(folder / FACTS_FILE, _text_of(_plain(built)))
    except BaseException:
        (folder / SERIES_FILE).unlink(missing_ok=True)
        with suppress(OSError):
            folder.rmdir()
        raise
    sync_folder(folder)
    return built


def read_facts(folder: Path) -> Built:
    """Read what a built source is, without its values.

    Raises:
        DataError: It is none, altered, incomplete, or of another format.
    """
    path = folder / FACTS_FILE
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise DataError(f"{path}: not a file; {_REBUILD}.")
        text = path.read_bytes()
        content = json.loads(text)
        own = content.pop("own")
        # Byte for byte: the same numbers can be written in several ways.
        if own != checksum_of(content) or text != _with_checksum(content).encode():
            raise DataError(f"{path}: altered since it was written; {_REBUILD}.")
        if content.pop("format") != FORMAT:
            raise DataError(f"{path}: of another version, this one reads {FORMAT}; {_REBUILD}.")
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
        DataError: As :func:`read_facts`; the values are in no form that was written; or the run
            asks for what only building decides.
    """
    import pyarrow as pa

    built = read_facts(folder)
    _refuse_decided(folder, source, built)
    file = folder / SERIES_FILE
    try:
        series = tuple(_mapped(_reader(str(file.resolve()), built.sha256), built, name))
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise DataError(f"{file}: not what its {FACTS_FILE} says; {_REBUILD}.") from error
    description = built.description if source.description is None else source.description
    return SeriesSet(
        name=name,
        series=series,
        frequency=built.frequency,
        seasonal_period=source.seasonal_period or built.seasonal_period,
        description=description,
        borders=built.borders,
        checksum=built.checksum,
        notes=built.notes,
    )


class _Seen(NamedTuple):
    """What is kept of a series that has been written."""

    id: str
    rows: int
    mean: float
    scale: float
    constant: bool
    begins: np.datetime64
    ends: np.datetime64


def _schema() -> "pa.Schema":
    import pyarrow as pa

    return pa.schema([("ds", pa.timestamp("ns")), ("y", pa.float64()), ("z", pa.float32())])


def _write_parts(file: Path, parts: Iterable[SeriesSet]) -> tuple[SeriesSet, list[_Seen]]:
    """Write series after series; returns what is known about all of them, and about each."""
    import pyarrow as pa

    joint, seen = Joint(), list[_Seen]()
    schema = _schema()
    try:
        with (
            replacing(file) as beside,
            pa.OSFile(str(beside), "wb") as sink,
            pa.ipc.new_file(sink, schema) as writer,
        ):
            for part in parts:
                joint.add(part)
                for series in part.series:
                    scaled = _scaled(series, part.borders)
                    writer.write_batch(_batch(series, scaled, schema))
                    seen.append(_seen(series, scaled.scaler))
                del part, series  # else they would be in memory beside the next file
    except OSError as error:
        if error.errno is None:
            raise
        # Arrow has words of its own for a disk that is full.
        raise OSError(error.errno, os.strerror(error.errno), error.filename) from error
    return joint.of(()), seen


def _seen(series: Series, scaler: Scaler) -> _Seen:
    return _Seen(
        id=series.id,
        rows=len(series.values),
        mean=float(scaler.mean[0]),
        scale=float(scaler.scale[0]),
        constant=bool(scaler.constant),
        begins=series.dates.min(),
        ends=series.dates.max(),
    )


def _scaled(series: Series, split: Borders) -> Standardised:
    train = borders(len(series.values), split, f"series {series.id!r}")["train"]
    if train[0] == train[1]:
        # Too short for any window: what opens it refuses it, or leaves it out.
        one = Scaler(mean=np.zeros(1), scale=np.ones(1))
        return Standardised(scaler=one, values=series.values.astype(np.float32))
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
    return pa.ipc.open_file(pa.memory_map(path))


def _mapped(reader: "pa.RecordBatchFileReader", built: Built, name: str) -> Iterator[Series]:
    """Make series of a file's batches without reading their values.

    Raises:
        ValueError: They are not what was written.
    """
    if reader.schema != _schema() or reader.num_record_batches != len(built.ids):
        raise ValueError
    facts = zip(built.ids, built.rows, built.mean, built.scale, built.constant, strict=True)
    for number, (id_, rows, mean, scale, constant) in enumerate(facts):
        batch = reader.get_batch(number)
        batch.validate()
        dates, values, scaled = (column.to_numpy(zero_copy_only=True) for column in batch.columns)
        if not len(dates) == len(values) == len(scaled) == rows:
            raise ValueError
        scaler = Scaler(
            mean=np.array([mean]), scale=np.array([scale]), constant=(0,) if constant else ()
        )
        yield Series(
            id=name + id_.removeprefix(built.name),
            dates=dates,
            values=values[:, None],
            columns=("y",),
            standardised=Standardised(scaler=scaler, values=scaled[:, None]),
        )


def _refuse_decided(folder: Path, source: SourceConfig, built: Built) -> None:
    plain = SourceConfig()
    for key in ("layout", "date_column", "columns", "missing", "dates", "splits"):
        asked, decided = getattr(source, key), built.settings.get(key)
        if asked not in (getattr(plain, key), decided):
            raise DataError(
                f"{key}={asked!r}: {folder} was built with {decided!r}; leave it out, or build it "
                "anew with it."
            )


def _plain(built: Built) -> dict[str, Any]:
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in vars(built).items()
    }


def _text_of(content: dict[str, Any]) -> str:
    return _with_checksum({"format": FORMAT, **content})


def _with_checksum(content: dict[str, Any]) -> str:
    return json.dumps(content | {"own": checksum_of(content)})
