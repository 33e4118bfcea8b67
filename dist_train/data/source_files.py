"""The files of a source, and the series in them, one file after another.

Every variate becomes a series of its own, whose id tells where it comes from.

Shape legend (this file):
    T  time steps of one series
"""

import glob
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

from dist_train.data.config import DataConfig, DataError, SourceConfig
from dist_train.data.dates import follows, tells_frequency
from dist_train.data.series import (
    Series,
    SeriesSet,
    checksum_of_data,
    checksum_of_parts,
    load_series,
)

READABLE = (".csv", ".parquet", ".pq")


def name_of(source: SourceConfig) -> str:
    """What a source is called: its name, else that of the data set, file or folder.

    Of a pattern it is that of the folder it looks into.
    """
    if source.name is not None or source.path is None:
        return source.name or source.dataset
    path = Path(source.path).expanduser()
    while glob.has_magic(path.name) and not path.exists():
        path = path.parent
    path = Path(os.path.abspath(path))  # noqa: PTH100  # .. has no name, and links keep theirs
    return (path.stem if path.suffix.lower() in READABLE else path.name) or "source"


def names_of(sources: Sequence[SourceConfig]) -> list[str]:
    """The names of all sources of a run.

    Raises:
        DataError: Two are the same.
    """
    names = [name_of(source) for source in sources]
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise DataError(f"data.sources names {twice!r} twice: give one of them another name.")
    return names


def files_of(source: SourceConfig) -> list[Path]:
    """The files that a source's ``path`` names, in the order of their names.

    Names that begin with a dot are left out, unless the pattern says the dot.

    Raises:
        DataError: There is none.
    """
    assert source.path is not None
    path = Path(source.path).expanduser()
    if path.is_dir():
        found = [file for file in sorted(path.iterdir()) if _is_readable(file)]
        if not found:
            raise DataError(
                f"path={source.path} holds no CSV or Parquet file: name a folder of such files, or "
                "a pattern such as folder/*.parquet."
            )
        return found
    if glob.has_magic(source.path) and not path.exists():
        fixed = next(parent for parent in path.parents if parent.is_dir())
        pattern = path.relative_to(fixed)
        found = sorted(
            file
            for file in fixed.glob(str(pattern))
            if file.is_file() and not _is_hidden(file.relative_to(fixed), pattern)
        )
        if not found:
            raise DataError(f"path={source.path} matches no file: check the pattern.")
        return found
    if not path.exists():
        raise DataError(f"path={source.path} does not exist: check the path.")
    return [path]


def parts_of(config: DataConfig, source: SourceConfig) -> Iterator[SeriesSet]:
    """Read a source file by file; nothing is kept of a file once the next one is asked for.

    Args:
        config: What all sources share.
        source: The source.

    Yields:
        The series of each file, univariate.

    Raises:
        DataError: A file cannot be used, or has another frequency than the first that tells one;
            the message names it.
    """
    own, name = config.of_source(source), name_of(source)
    if source.path is None:
        yield _flat(load_series(own), name, name)
        return
    files = files_of(source)
    rhythm: _Rhythm | None = None
    for file, label in zip(files, _labels(files), strict=True):
        part = _load(own, file)
        if rhythm is None:
            rhythm = _rhythm_of(part, own, files)
        with _naming(file):
            part = _at_rhythm(part, rhythm, strict=own.dates == "strict")
        if len(files) == 1:
            yield _flat(part, name, name)
        else:
            part = replace(
                part,
                checksum=_labelled(label, part.checksum),
                notes=tuple(f"{label}: {note}" for note in part.notes),
            )
            yield _flat(part, name, f"{name}/{label}")
        del part  # else it would be in memory beside the next one


def checksum_of_source(config: DataConfig, source: SourceConfig) -> str:
    """The checksum of a source's series, without making series of its files.

    Raises:
        DataError: There is no file, or it cannot be read.
    """
    own = config.of_source(source)
    if source.path is None:
        return checksum_of_data(own)
    files = files_of(source)
    checksums = [checksum_of_data(replace(own, path=str(file))) for file in files]
    if len(files) == 1:
        return checksums[0]
    return checksum_of_parts(
        [_labelled(*pair) for pair in zip(_labels(files), checksums, strict=True)]
    )


class Joint:
    """What is known about a source once its parts have been seen; keeps no series."""

    def __init__(self) -> None:
        self._first: SeriesSet | None = None
        self._frequencies: set[str | None] = set()
        self._checksums: list[str] = []
        self._notes: list[str] = []

    def add(self, part: SeriesSet) -> None:
        """Take note of a part."""
        if self._first is None:
            self._first = replace(part, series=())
        self._frequencies.add(part.frequency)
        self._checksums.append(part.checksum)
        self._notes += part.notes

    def of(self, series: tuple[Series, ...]) -> SeriesSet:
        """The whole, of the series that the caller has kept."""
        assert self._first is not None, "no part"
        several = len(self._frequencies) > 1
        return replace(
            self._first,
            series=series,
            frequency=None if several else self._first.frequency,
            checksum=checksum_of_parts(self._checksums),
            notes=tuple(self._notes),
        )


@dataclass(frozen=True, slots=True)
class _Rhythm:
    """What the files of a source have to have in common."""

    frequency: str | None
    seasonal_period: int
    told_by: Path


def _load(own: DataConfig, file: Path) -> SeriesSet:
    with _naming(file):
        return load_series(replace(own, path=str(file)))


@contextmanager
def _naming(file: Path) -> Iterator[None]:
    """Say in front of what is refused inside which file it is of."""
    try:
        yield
    except DataError as error:
        if str(file) in str(error):
            raise
        raise DataError(f"{file}: {error}") from error


def _rhythm_of(first: SeriesSet, own: DataConfig, files: Sequence[Path]) -> _Rhythm:
    """The frequency of the first file that surely tells one, so that their order is all the same.

    Files before it are read here and again later; they have a few rows.

    Args:
        first: What the first file holds.
        own: How files are read.
        files: All of them.
    """
    unsure: _Rhythm | None = None
    for number, file in enumerate(files):
        part = first if number == 0 else _load(own, file)
        rhythm = _Rhythm(part.frequency, part.seasonal_period, file)
        if any(tells_frequency(one.dates, part.frequency) for one in part.series):
            return rhythm
        if unsure is None or unsure.frequency is None:
            unsure = rhythm
    assert unsure is not None, "no file"
    return unsure


def _is_hidden(file: Path, pattern: Path) -> bool:
    """Whether a name on the way to a file begins with a dot that the pattern does not say."""
    said = [part for part in pattern.parts if part.startswith(".")]
    dotted = [part for part in file.parts if part.startswith(".")]
    return not all(any(fnmatchcase(part, one) for one in said) for part in dotted)


def _is_readable(file: Path) -> bool:
    # A name that begins with a dot is the system's, or a file that is still being written.
    return file.suffix.lower() in READABLE and not file.name.startswith(".")


def _labels(files: Sequence[Path]) -> list[str]:
    """What tells the files of a source apart: names without ending, else whole paths."""
    stems = [file.stem for file in files]
    if len(set(stems)) == len(stems):
        return stems
    top = os.path.commonpath([file.parent for file in files])
    return [file.relative_to(top).as_posix() for file in files]


def _labelled(label: str, checksum: str) -> str:
    return checksum_of_parts([label, checksum])


def _at_rhythm(part: SeriesSet, rhythm: _Rhythm, *, strict: bool) -> SeriesSet:
    """Refuse a file of another frequency; a few rows may follow several."""
    frequency = rhythm.frequency
    if part.frequency == frequency:
        return part
    if frequency is not None and all(follows(one.dates, frequency) for one in part.series):
        return replace(part, frequency=frequency, seasonal_period=rhythm.seasonal_period)
    if strict:
        raise DataError(
            f"its frequency is {part.frequency}, that of {rhythm.told_by.name} is {frequency}: "
            "make them sources of their own, or take rows in order with dates=as_is."
        )
    return part


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
