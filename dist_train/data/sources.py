"""Several sets of series for one model: each read as if it were alone, then laid end to end.

Every variate becomes a series of its own, so that sets with any number of variates share a batch:
the forecaster reads each variate by itself anyway.

Shape legend (this file):
    T  time steps of one series
"""

import glob
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from dist_train.data.arrow_series import is_built, open_series
from dist_train.data.config import DataConfig, DataError, SourceConfig
from dist_train.data.dates import season_of
from dist_train.data.series import Series, SeriesSet, load_series

READABLE = (".csv", ".parquet", ".pq")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Source:
    """One set of series, and what part it has in the training."""

    series_set: SeriesSet
    """Its series, and what is known about them; the name is the source's."""

    weight: float = 1.0
    """How often its windows are drawn, see :class:`~dist_train.data.config.SourceConfig`."""

    percent: int = 100
    """Share of its training windows that are used, in percent."""

    memory_percent: int = 100
    """Share of its training rows that the memory holds, in percent."""

    @property
    def name(self) -> str:
        """What it is called."""
        return self.series_set.name


def load_sources(config: DataConfig) -> tuple[Source, ...]:
    """Read what ``data`` names: its sources, or the one set.

    Raises:
        DataError: A source cannot be used as it is; the message names it, the place and the remedy.
    """
    if config.sources is None:
        percent = config.percent
        series_set = load_series(config)
        return (Source(series_set=series_set, percent=percent, memory_percent=percent),)
    loaded = []
    for number, source in enumerate(config.sources):
        try:
            series_set = _load(config.of_source(source), source)
        except DataError as error:
            raise DataError(f"data.sources[{number}] ({source.label}): {error}") from error
        memory = source.percent if source.memory_percent is None else source.memory_percent
        loaded.append(
            Source(
                series_set=series_set,
                weight=source.weight,
                percent=source.percent,
                memory_percent=memory,
            )
        )
    names = [source.name for source in loaded]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"data.sources names {twice!r} twice: give one of them another name.")
    return tuple(loaded)


def union(sources: tuple[Source, ...]) -> SeriesSet:
    """All series of all sources as one set, in their order."""
    if len(sources) == 1:
        return sources[0].series_set
    sets = [source.series_set for source in sources]
    frequencies = {one.frequency for one in sets}
    return SeriesSet(
        name=", ".join(one.name for one in sets),
        series=tuple(series for one in sets for series in one.series),
        frequency=frequencies.pop() if len(frequencies) == 1 else None,
        seasonal_period=sets[0].seasonal_period,
        description="",
        borders=sets[0].borders,
        checksum=_checksum_of((one.name, one.checksum) for one in sets),
        notes=tuple(f"{one.name}: {note}" for one in sets for note in one.notes),
    )


def files_of(source: SourceConfig) -> list[Path]:
    """The files that a source's ``path`` names, in the order of their names.

    Raises:
        DataError: There is none.
    """
    assert source.path is not None
    path = Path(source.path).expanduser()
    if path.is_dir() and not is_built(path):
        found = [file for file in sorted(path.iterdir()) if file.suffix.lower() in READABLE]
        if not found:
            raise DataError(
                f"path={source.path} holds no CSV or Parquet file: name a folder of such files, or "
                "a pattern such as folder/*.parquet."
            )
        return found
    if glob.has_magic(source.path) and not path.exists():
        fixed = next(parent for parent in path.parents if not glob.has_magic(str(parent)))
        found = sorted(file for file in fixed.glob(str(path.relative_to(fixed))) if file.is_file())
        if not found:
            raise DataError(f"path={source.path} matches no file: check the pattern.")
        return found
    return [path]


def _load(config: DataConfig, source: SourceConfig) -> SeriesSet:
    if source.path is None:
        series_set = load_series(config)
        name = source.name or series_set.name
        return _flat(series_set, name, name)
    files = files_of(source)
    name = source.name or _name_of(Path(source.path))
    if is_built(files[0]):
        return open_series(files[0], source, name)
    sets = []
    for file in files:
        read = load_series(replace(config, path=str(file)))
        sets.append(_flat(read, name, f"{name}/{file.stem}" if len(files) > 1 else name))
    return _joined(sets, files)


def _name_of(path: Path) -> str:
    """The file's name without ending; of a pattern that of the folder it looks into."""
    while glob.has_magic(path.name):
        path = path.parent
    return (path.stem if path.suffix.lower() in READABLE else path.name) or "source"


def _flat(series_set: SeriesSet, name: str, prefix: str) -> SeriesSet:
    """Make each variate a series of its own, whose id tells where it comes from."""
    many = len(series_set.series) > 1
    flat = []
    for series in series_set.series:
        place = f"{prefix}/{series.id}" if many else prefix
        for n, column in enumerate(series.columns):
            id_ = f"{place}/{column}" if len(series.columns) > 1 else place
            values = series.values[:, n : n + 1]
            flat.append(Series(id=id_, dates=series.dates, values=values, columns=("y",)))
    return replace(series_set, name=name, series=tuple(flat))


def _joined(sets: list[SeriesSet], files: list[Path]) -> SeriesSet:
    """The series of several files as one set, of one frequency."""
    first = sets[0]
    if len(sets) == 1:
        return first
    for other, file in zip(sets, files, strict=True):
        if other.frequency != first.frequency:
            raise DataError(
                f"{files[0].name} has the frequency {first.frequency}, {file.name} "
                f"{other.frequency}: make them sources of their own."
            )
    return replace(
        first,
        series=tuple(series for one in sets for series in one.series),
        seasonal_period=first.seasonal_period or season_of(first.frequency),
        checksum=_checksum_of(
            (file.name, one.checksum) for file, one in zip(files, sets, strict=True)
        ),
        notes=tuple(
            f"{file.name}: {note}"
            for file, one in zip(files, sets, strict=True)
            for note in one.notes
        ),
    )


def _checksum_of(parts: Iterable[tuple[str, str]]) -> str:
    digest = hashlib.sha256()
    for name, checksum in parts:
        digest.update(f"{name} {checksum}\n".encode())
    return digest.hexdigest()
