"""Settings of the data: which series, how they are split and mixed, what a window is.

Free of torch, so that a configuration is read and refused before anything heavy is imported.
"""

from dataclasses import dataclass, fields, replace
from math import isfinite
from pathlib import Path
from typing import Literal, Protocol

TooShort = Literal["error", "skip"]
Missing = Literal["error", "interpolate", "forward"]


class DataError(ValueError):
    """The data cannot be used as they are; the message says what to change."""


def quote(cell: object, limit: int = 60) -> str:
    """Write a cell or a name into a message; of a long one the beginning."""
    text = str(cell)
    return repr(text if len(text) <= limit else f"{text[:limit]}...")


@dataclass(frozen=True, kw_only=True)
class SeriesConfig:
    """One set of series: where it lies and how it is read and split."""

    dataset: str = "vic_elec"
    """A name of the catalog; it brings file name, frequency, splits and description with it."""

    path: str | None = None
    """Own CSV or Parquet file instead of a catalog entry; ``dataset`` is then ignored."""

    layout: Literal["auto", "wide", "long"] = "auto"
    """wide: a date column and one column per variate; long: unique_id, ds, y; auto: by header."""

    date_column: str | None = None
    """Name of the date column; default ``date`` (wide) or ``ds`` (long)."""

    columns: list[str] | None = None
    """Variates to use, in this order; default all columns but the dates: text is refused."""

    description: str | None = None
    """What the series are, for the prompt; default from the catalog."""

    seasonal_period: int | None = None
    """Steps per season for seasonal naive and MASE; default from catalog or frequency."""

    splits: list[float] | None = None
    """Train, validation and test share, summing to 1; default from catalog, else 0.7/0.1/0.2."""

    percent: int = 100
    """Share of the training windows used, the oldest ones as in Time-LLM, in percent (few-shot)."""

    missing: Missing = "error"
    """Missing values: stop and name them, or fill them: interpolate: linearly, from both sides, so
    that a window which ends in a gap knows what follows it; forward: with the last value before."""

    dates: Literal["strict", "as_is"] = "strict"
    """strict: duplicated or skipped time stamps stop the run; as_is: rows are taken in order.

    A catalog entry whose published file has such defects brings as_is with it."""

    _section = "data."
    _fewest_percent = 1

    def __post_init__(self) -> None:
        section, fewest = self._section, self._fewest_percent
        if not fewest <= self.percent <= 100:
            raise ValueError(f"{section}percent must be in [{fewest}, 100], got {self.percent}.")
        if self.splits is not None:
            if len(self.splits) != 3 or any(share <= 0 for share in self.splits):
                raise ValueError(
                    f"{section}splits must be three positive shares (train, validation, test), "
                    f"got {self.splits}."
                )
            if abs(sum(self.splits) - 1) > 1e-6:
                raise ValueError(f"{section}splits must sum to 1, got {self.splits}.")
        if self.seasonal_period is not None and self.seasonal_period < 1:
            raise ValueError(
                f"{section}seasonal_period must be at least 1, got {self.seasonal_period}."
            )


@dataclass(frozen=True, kw_only=True)
class SourceConfig(SeriesConfig):
    """One of several sets of series that a run trains on, or is scored on."""

    path: str | None = None
    """Own file, folder of files or pattern (``data/*.parquet``) instead of a catalog entry; or a
    folder that ``timellm data build`` has made. In a file, ``./`` begins at that file's folder."""

    name: str | None = None
    """What the source is called in scores and messages; default the data set's or file's name."""

    weight: float = 1.0
    """How often its windows are drawn, times what ``data.temperature`` makes of their number."""

    percent: int = 100
    """Share of the training windows used, the oldest ones, in percent; 0: it is scored only, and
    training never sees it (zero-shot)."""

    memory_percent: int | None = None
    """Share of the training rows that the memory holds; default as percent. 100 beside percent 0
    lets a forecaster that was never trained on a source retrieve from that source's history."""

    pred_len: int | None = None
    """Steps that are forecast of this source, where they are fewer than ``data.pred_len``: only the
    first steps of the forecast are trained, scored and given for it."""

    too_short: TooShort = "error"
    """A series without one window of seq_len + pred_len in some split: stop and name it, or leave
    such series out and tell how many."""

    # Messages begin with a key; what reads a list of sources says which of them it is of.
    _section = ""
    _fewest_percent = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (isfinite(self.weight) and self.weight > 0):
            raise ValueError(
                f"weight must be positive, got {self.weight}: percent=0 keeps a source out of the "
                "training."
            )
        if self.memory_percent is not None and not 0 <= self.memory_percent <= 100:
            raise ValueError(f"memory_percent must be in [0, 100], got {self.memory_percent}.")
        if self.pred_len is not None and self.pred_len < 1:
            raise ValueError(f"pred_len must be at least 1, got {self.pred_len}.")
        if self.name is not None and (not self.name or "/" in self.name):
            raise ValueError(f"name={self.name!r}: must be a word without /.")
        if self.path == "":
            raise ValueError("path is empty: name a file, a folder or a pattern, or leave it out.")
        if self.path is not None:
            # Without ./, which in a file means the folder of that file: a run's saved configuration
            # would look for it in the run's folder.
            object.__setattr__(self, "path", str(Path(self.path)))

    @property
    def label(self) -> str:
        """Its name, as far as it is known without reading it."""
        return self.name or (self.dataset if self.path is None else self.path)


class HasHorizon(Protocol):
    """What may be forecast for fewer steps than the others."""

    @property
    def pred_len(self) -> int | None:
        """Steps; None: as many as the others."""


@dataclass(frozen=True, kw_only=True)
class DataConfig(SeriesConfig):
    """Which series are forecast, and how they are cut."""

    root: str | None = None
    """Folder of the catalog's files; else the environment variable TIMELLM_DATA_ROOT."""

    sources: list[SourceConfig] | None = None
    """Several sets of series for one model, each with keys as above, instead of one set. Every
    variate is a series of its own then, whatever file it comes from."""

    temperature: float = 1.0
    """How sources are mixed: each is drawn as its number of training windows to the power of 1 /
    temperature, times its weight. 1: every window alike; large: every source alike."""

    seq_len: int = 512
    """Context window, in time steps."""

    pred_len: int = 96
    """Forecast horizon, in time steps; with sources, the longest of theirs."""

    train_stride: int = 1
    """Steps between the starts of training windows."""

    val_stride: int = 1
    """Steps between the windows that model selection scores; reported scores always use 1."""

    val_series: int | None = None
    """Series of each source that model selection scores, evenly spread over it; None: all. A
    corpus of many series would be validated for longer than it is trained on."""

    num_workers: int = 1
    """Processes per rank that prepare batches and prompts; 0 prepares them in the rank itself."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("seq_len", "pred_len", "train_stride", "val_stride"):
            if getattr(self, key) < 1:
                raise ValueError(f"data.{key} must be at least 1, got {getattr(self, key)}.")
        if self.val_series is not None and self.val_series < 1:
            raise ValueError(f"data.val_series must be at least 1, got {self.val_series}.")
        if self.num_workers < 0:
            raise ValueError(f"data.num_workers must not be negative, got {self.num_workers}.")
        if not (isfinite(self.temperature) and self.temperature >= 1):
            raise ValueError(f"data.temperature must be at least 1, got {self.temperature}.")
        if self.sources is not None:
            self._check_sources()

    def _check_sources(self) -> None:
        assert self.sources is not None
        if not self.sources:
            raise ValueError("data.sources is empty: name at least one, or leave it out.")
        plain = SeriesConfig()
        given = [item.name for item in fields(SeriesConfig)
                 if getattr(self, item.name) != getattr(plain, item.name)]  # fmt: skip
        if given:
            raise ValueError(
                f"data.{given[0]}={getattr(self, given[0])!r} beside data.sources: say it of each "
                "source instead."
            )
        labels = [source.label for source in self.sources]
        twice = next((label for label in labels if labels.count(label) > 1), None)
        if twice is not None:
            raise ValueError(f"data.sources names {twice!r} twice: give one of them another name.")
        if all(source.percent == 0 for source in self.sources):
            raise ValueError(
                "data.sources: every source has percent=0, so there is nothing to train on; raise "
                "one of them."
            )
        beyond = next((one for one in self.sources if self.horizon_of(one) > self.pred_len), None)
        if beyond is not None:
            raise ValueError(
                f"pred_len={beyond.pred_len} of {beyond.label!r} in data.sources is more than "
                f"data.pred_len={self.pred_len}, the longest that the model forecasts: raise that, "
                "or shorten this."
            )
        longest = max(self.horizon_of(source) for source in self.sources if source.percent)
        if longest < self.pred_len:
            raise ValueError(
                f"data.pred_len={self.pred_len}: the sources that are trained on have at most "
                f"pred_len={longest}, so nothing would teach the later steps; lower it to "
                f"{longest}."
            )

    def horizon_of(self, source: HasHorizon) -> int:
        """Steps that are forecast of a source, as it is configured or as it was read."""
        return source.pred_len or self.pred_len

    @property
    def horizons(self) -> tuple[int, ...]:
        """Steps that are forecast of each source; of the one set where none are named."""
        if not self.sources:
            return (self.pred_len,)
        return tuple(self.horizon_of(source) for source in self.sources)

    @property
    def label(self) -> str:
        """What the data are called, as far as it is known without reading them."""
        if self.sources:
            return ", ".join(source.label for source in self.sources)
        return self.path or self.dataset

    @property
    def told_horizon(self) -> str:
        """Steps that are forecast, in words; of sources that differ, the fewest and the most."""
        least, most = min(self.horizons), max(self.horizons)
        return str(most) if least == most else f"{least} to {most}"

    def of_source(self, source: SourceConfig) -> "DataConfig":
        """The settings under which one of :attr:`sources` is read as if it were alone."""
        shared = {item.name: getattr(source, item.name) for item in fields(SeriesConfig)}
        own = {"sources": None, "percent": 100, "pred_len": self.horizon_of(source)}
        return replace(self, **shared | own)
