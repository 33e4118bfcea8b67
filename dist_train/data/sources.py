"""Several sets of series for one model: each read as if it were alone, then laid end to end.

Every variate becomes a series of its own, so that sets with any number of variates share a batch:
the forecaster reads each variate by itself anyway.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dist_train import local_copy
from dist_train.data.arrow_series import CORPUS_FILE, is_source, open_series
from dist_train.data.config import DataConfig, DataError, SourceConfig, TooShort
from dist_train.data.series import (
    Series,
    SeriesSet,
    checksum_of_parts,
    data_file,
    load_series,
)
from dist_train.data.source_files import Joint, files_of, name_of, names_of, parts_of


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

    pred_len: int | None = None
    """Steps that are forecast of it; None: ``data.pred_len``."""

    too_short: TooShort = "error"
    """What becomes of series without a window, see
    :class:`~dist_train.data.config.SourceConfig`."""

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
    names_of(config.sources)
    loaded = []
    for number, source in enumerate(config.sources):
        with naming(number, source.label):
            series_set = _load(config, source)
        memory = source.percent if source.memory_percent is None else source.memory_percent
        loaded.append(
            Source(
                series_set=series_set,
                weight=source.weight,
                percent=source.percent,
                memory_percent=memory,
                pred_len=source.pred_len,
                too_short=source.too_short,
            )
        )
    return tuple(loaded)


@contextmanager
def naming(number: int, label: str) -> Iterator[None]:
    """Say in front of what is refused inside which source it is of."""
    try:
        yield
    except DataError as error:
        raise DataError(f"data.sources[{number}] ({label}): {error}") from error


def read_by(config: DataConfig) -> list[Path]:
    """Files and folders that a run reads its series from; those of a package are none.

    Raises:
        DataError: A data set's file, or a source's, is nowhere.
    """
    if config.sources is None:
        return [file for file in [data_file(config)] if file is not None]
    found: list[Path] = []
    for number, source in enumerate(config.sources):
        with naming(number, source.label):
            if source.path is None:
                found += read_by(config.of_source(source))
            elif is_source(Path(source.path).expanduser()):
                found.append(Path(source.path).expanduser())
            else:
                found += files_of(source)
    return found


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
        checksum=checksum_of_parts([f"{one.name} {one.checksum}" for one in sets]),
        notes=tuple(f"{one.name}: {note}" for one in sets for note in one.notes),
    )


def _load(config: DataConfig, source: SourceConfig) -> SeriesSet:
    if source.path is not None:
        path = Path(source.path).expanduser()
        if is_source(path):
            return open_series(local_copy.find(path), source, name_of(source))
        if path.is_dir() and any(is_source(folder) for folder in path.iterdir()):
            raise DataError(
                f"path={source.path} holds built sources: name one of them, or begin with "
                f"--config {path / CORPUS_FILE}, which names all."
            )
    joint, series = Joint(), list[Series]()
    for part in parts_of(config, source):
        joint.add(part)
        series += part.series
    return joint.of(tuple(series))
