"""Windows: what the model sees and has to forecast, by number.

Shape legend (this file):
    B  windows in a batch     L  seq_len      T  time steps of one series
    N  variates               H  pred_len     C  channels = series x variates
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from dist_train.data.config import DataConfig, TooShort
from dist_train.data.dates import Dates, calendar_phase
from dist_train.data.lengths import long_enough, num_windows, oldest_rows
from dist_train.data.mixture import Mixture, shares
from dist_train.data.series import SeriesSet
from dist_train.data.sources import Source, load_sources, naming, union
from dist_train.data.splits import Scaler, Split, borders
from dist_train.data.standardise import standardise

Float32s = npt.NDArray[np.float32]
Float64s = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_MOST_NOTES = 8
"""Of one kind and one source."""


class WindowSet:
    """The windows of one split over all series, numbered series by series, oldest first."""

    def __init__(
        self,
        values: Sequence[Float32s],
        ranges: Sequence[tuple[int, int]],
        seq_len: int,
        pred_len: int | Sequence[int],
        stride: int = 1,
        dates: Sequence[Dates] | None = None,
        sources: Ints | None = None,
    ) -> None:
        """Number the windows.

        Args:
            values: Standardised series, shared, not copied. Shape (T, N) each.
            ranges: First context row and end of the last target of each series.
            seq_len: Context length L.
            pred_len: Forecast length H; or that of each series, H is the longest then.
            stride: Rows between the starts of windows.
            dates: Time stamps of the series, shared too. Shape (T,) each; None: not known.
            sources: Number of the source of each series; None: there is one.
        """
        assert len(values) == len(ranges) > 0
        self.values, self.ranges = tuple(values), tuple(ranges)
        self.seq_len, self.stride = seq_len, stride
        own = [pred_len] * len(values) if isinstance(pred_len, int) else pred_len
        self._horizons = np.array(own, dtype=np.int64)
        self.pred_len = int(self._horizons.max())
        """H, the longest horizon of a series."""
        self._alike = int(self._horizons.min()) == self.pred_len
        self._dates = None if dates is None else tuple(dates)
        self._sources = np.zeros(len(values), dtype=np.int64) if sources is None else sources
        counts = [
            num_windows(end - begin, seq_len, horizon, False, stride)
            for (begin, end), horizon in zip(ranges, own, strict=True)
        ]
        self._first_id = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        self._begins = np.array([begin for begin, _ in ranges], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._first_id[-1])

    @property
    def num_variates(self) -> int:
        """N."""
        return int(self.values[0].shape[1])

    def horizon_of(self, series: int) -> int:
        """Steps that are forecast of the windows of a series, at most H."""
        return int(self._horizons[series])

    def locate_batch(self, ids: Sequence[int] | Ints) -> tuple[Ints, Ints]:
        """Series number and first context row of each window. Shape (B,) each.

        Raises:
            IndexError: A window number outside [0, len).
        """
        ids_B = np.asarray(ids, dtype=np.int64)
        if ids_B.size and not (ids_B.min() >= 0 and ids_B.max() < len(self)):
            raise IndexError(f"window ids must be in [0, {len(self)}), got {ids_B.tolist()}.")
        series_B = np.searchsorted(self._first_id, ids_B, side="right") - 1
        starts_B = self._begins[series_B] + (ids_B - self._first_id[series_B]) * self.stride
        return series_B.astype(np.int64), starts_B

    def locate(self, window_id: int) -> tuple[int, int]:
        """Series number and first context row of one window."""
        series, starts = self.locate_batch([window_id])
        return int(series[0]), int(starts[0])

    def of_series(self, part: slice) -> "WindowSet":
        """The windows of some series, series and windows numbered from 0."""
        dates = None if self._dates is None else self._dates[part]
        return WindowSet(  # of one source, whose number is 0 then
            self.values[part], self.ranges[part], self.seq_len, self._horizons[part].tolist(),
            self.stride, dates,
        )  # fmt: skip

    def ids_of(self, part: slice) -> slice:
        """Numbers of the windows of some series."""
        return slice(int(self._first_id[part.start]), int(self._first_id[part.stop]))

    def count_by_series_range(self, first: Ints) -> Ints:
        """Windows of the series between each two numbers. Shape (S + 1,) in, (S,) out."""
        return np.diff(self._first_id[first])

    def source_of(self, ids: Sequence[int] | Ints) -> Ints:
        """Number of the source of each window. Shape (B,)."""
        series_B, _ = self.locate_batch(ids)
        number_B: Ints = self._sources[series_B]
        return number_B

    def even_sample(self, max_windows: int, series: slice = slice(None)) -> Ints:
        """Numbers of at most ``max_windows`` windows, evenly spread, ends included. Ascending.

        Args:
            max_windows: As many, or all there are.
            series: Only windows of these series.
        """
        first, end, _ = series.indices(len(self.values))
        begin, until = int(self._first_id[first]), int(self._first_id[end])
        size = min(until - begin, max_windows)
        return np.unique(np.linspace(begin, until - 1, size).astype(np.int64))

    def calendar_phase(self, ids: Sequence[int] | Ints) -> Float32s | None:
        """When each context ends, see :func:`~dist_train.data.dates.calendar_phase`.

        Returns:
            Shape (B, 4); None where the dates are not known.
        """
        if self._dates is None:
            return None
        series_B, starts_B = self.locate_batch(ids)
        last_B = [
            self._dates[number][start + self.seq_len - 1]
            for number, start in zip(series_B, starts_B, strict=True)
        ]
        return calendar_phase(np.array(last_B, dtype="datetime64[ns]"))

    def context(self, window_id: int) -> Float32s:
        """What the model sees. Shape (L, N)."""
        contexts, _ = self.batch([window_id])
        return contexts.reshape(contexts.shape[1:])

    def target(self, window_id: int) -> Float32s:
        """What it has to forecast. Shape (H, N)."""
        _, targets = self.batch([window_id])
        return targets.reshape(targets.shape[1:])

    def batch(self, ids: Sequence[int] | Ints) -> tuple[Float32s, Float32s]:
        """Cut windows out of their series.

        Args:
            ids: Window numbers, in any order, repeats allowed. B of them.

        Returns:
            Contexts (B, L, N) and targets (B, H, N), standardised; copies. Targets are NaN beyond
            the horizon of their series.
        """
        series_B, starts_B = self.locate_batch(ids)
        size = len(starts_B)
        contexts = np.empty((size, self.seq_len, self.num_variates), dtype=np.float32)
        targets = np.empty((size, self.pred_len, self.num_variates), dtype=np.float32)
        steps_L, steps_H = np.arange(self.seq_len), np.arange(self.pred_len) + self.seq_len
        if not self._alike:
            targets.fill(np.nan)
        for number in np.unique(series_B):
            here_B = series_B == number
            starts = starts_B[here_B, None]
            contexts[here_B] = self.values[number][starts + steps_L]
            horizon = self.horizon_of(int(number))
            targets[here_B, :horizon] = self.values[number][starts + steps_H[:horizon]]
        return contexts, targets


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ForecastData:
    """Everything a run needs of its data."""

    series_set: SeriesSet
    """The series in original units; its notes now also tell what splitting them found."""

    scalers: tuple[Scaler, ...]
    """One per series, fitted on its training rows."""

    windows: dict[str, WindowSet]
    """By split: train, val, test; and val_selection, the windows that select the model."""

    split_rows: tuple[dict[Split, tuple[int, int]], ...]
    """Rows that each split forecasts, per series."""

    memory_rows: tuple[tuple[int, int], ...]
    """Rows [begin, end) of each series whose windows the memory may hold."""

    sources: tuple[Source, ...]
    """Where the series come from, laid end to end; one, unless ``data.sources`` names several."""

    pred_len: int
    """H of the model and of the memory's entries, whatever fewer steps are forecast of a source."""

    @property
    def first_series(self) -> Ints:
        """Number of each source's first series, and behind the last one that of none. (S + 1,)."""
        counts = [len(source.series_set.series) for source in self.sources]
        return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)

    @property
    def series_of_sources(self) -> tuple[slice, ...]:
        """Numbers of each source's series."""
        return tuple(slice(first, end) for first, end in pairwise(self.first_series.tolist()))

    def source_of(self, series: Ints) -> Ints:
        """Number of the source of each series. Shape (...) in and out."""
        number: Ints = np.searchsorted(self.first_series, series, side="right") - 1
        return number

    def mixture(self, temperature: float) -> Mixture:
        """How training mixes the sources.

        Args:
            temperature: ``data.temperature``.
        """
        windows = self.windows["train"]
        counts = [int(count) for count in windows.count_by_series_range(self.first_series)]
        weights = [source.weight for source in self.sources]
        return Mixture(counts, shares(counts, weights, temperature))

    @property
    def trained_sources(self) -> list[int]:
        """Numbers of the sources that have training windows."""
        counts = self.windows["train"].count_by_series_range(self.first_series)
        return [int(number) for number in np.flatnonzero(counts)]

    @property
    def seasonal_periods(self) -> tuple[int, ...]:
        """Steps per season of each source."""
        return tuple(source.series_set.seasonal_period for source in self.sources)

    @property
    def descriptions(self) -> tuple[str, ...]:
        """What the series of each source are, in words."""
        return tuple(source.series_set.description for source in self.sources)

    def source_channels(self) -> dict[str, slice]:
        """Channels of each source, by its name."""
        variates = self.num_variates
        return {
            source.name: slice(part.start * variates, part.stop * variates)
            for source, part in zip(self.sources, self.series_of_sources, strict=True)
        }

    def only(self, source: int) -> "ForecastData":
        """The part of one source, its series numbered from 0."""
        part = self.series_of_sources[source]
        return replace(
            self,
            series_set=self.sources[source].series_set,
            scalers=self.scalers[part],
            windows={split: windows.of_series(part) for split, windows in self.windows.items()},
            split_rows=self.split_rows[part],
            memory_rows=self.memory_rows[part],
            sources=(self.sources[source],),
        )

    @property
    def num_variates(self) -> int:
        """N."""
        return len(self.series_set.series[0].columns)

    @property
    def num_channels(self) -> int:
        """C: every variate of every series."""
        return len(self.series_set.series) * self.num_variates

    @property
    def channel_names(self) -> tuple[str, ...]:
        """Names in channel order: the variates of one series, or the ids of many univariate."""
        series = self.series_set.series
        if len(series) == 1:
            return series[0].columns
        if self.num_variates == 1:
            return tuple(one.id for one in series)
        return tuple(f"{one.id}/{column}" for one in series for column in one.columns)

    def num_entries(self, stride: int) -> int:
        """Windows of all variates that the memory may hold, limits left aside.

        Args:
            stride: ``bank.bank_stride``.
        """
        windows = self.windows["train"]
        counts = [
            num_windows(end - begin, windows.seq_len, self.pred_len, False, stride)
            for begin, end in self.memory_rows
        ]
        return sum(counts) * self.num_variates

    def channels_of(self, window_ids: Sequence[int] | Ints, split: str) -> Ints:
        """Channel number of each variate of each window of ``windows[split]``. Shape (B, N)."""
        series_B, _ = self.windows[split].locate_batch(window_ids)
        return series_B[:, None] * self.num_variates + np.arange(self.num_variates)

    def scale_of_channels(self) -> Float64s:
        """Original units per standardised unit. Shape (C,)."""
        return np.concatenate([scaler.scale for scaler in self.scalers])

    def train_values(self, series: int) -> Float64s:
        """Training rows of one series in original units, whatever ``percent``. Shape (T, N)."""
        begin, end = self.split_rows[series]["train"]
        return self.series_set.series[series].values[begin:end]


def load_forecast_data(config: DataConfig, *, with_dates: bool = False) -> ForecastData:
    """Read, check, split and standardise what ``data`` names, without importing torch.

    Args:
        config: What to read.
        with_dates: As :func:`build_from_sources`.

    Raises:
        DataError: As :func:`~dist_train.data.sources.load_sources` and
            :func:`build_from_sources`.
    """
    return build_from_sources(config, load_sources(config), with_dates=with_dates)


def build_forecast_data(
    config: DataConfig, series_set: SeriesSet, *, with_dates: bool = False
) -> ForecastData:
    """As :func:`build_from_sources`, of one set of series."""
    percent = config.percent
    only = Source(series_set=series_set, percent=percent, memory_percent=percent)
    return build_from_sources(config, (only,), with_dates=with_dates)


def build_from_sources(
    config: DataConfig, sources: tuple[Source, ...], *, with_dates: bool = False
) -> ForecastData:
    """Split each series, fit its scaler on its training rows and number its windows.

    Args:
        config: How they are split.
        sources: The series.
        with_dates: Windows know their time of year, for a model that reads it; each batch tells
            it then.

    Raises:
        DataError: A series is too short for one window in some split, and its source does not say
            that such ones are left out; or it cannot be standardised.
    """
    sources = tuple(_long_enough(sources, config))
    series_set = union(sources)
    notes = list(series_set.notes)
    scalers, values, split_rows, memory_rows = [], [], [], []
    ranges: dict[str, list[tuple[int, int]]] = {
        split: [] for split in ("train", "val", "val_selection", "test")
    }
    for number, source in enumerate(sources):
        constant, unused, forgotten = [], [], 0
        selecting = _selecting(len(source.series_set.series), config.val_series)
        for place, one in enumerate(source.series_set.series):
            where = f"series {one.id!r}"
            with _naming(number, sources, config):
                rows = borders(len(one.values), source.series_set.borders, where)
                scaled = one.standardised
                if scaled is None:
                    scaled = standardise(one.values, rows["train"], one.columns, one.id)
                trained, remembered = _oldest_rows(source, rows["train"], config, where)
            constant += [f"column {one.columns[n]!r} of {where} is constant in the training rows"
                         for n in scaled.scaler.constant]  # fmt: skip
            forgotten += trained[0] < trained[1] and remembered[0] == remembered[1]
            left = len(one.values) - rows["test"][1]
            if left:
                unused.append(f"{where}: the newest {left} rows belong to no split")
            ranges["train"].append(trained)
            for split in ("val", "test"):
                ranges[split].append((rows[split][0] - config.seq_len, rows[split][1]))
            last = ranges["val"][-1]
            ranges["val_selection"].append(last if place in selecting else (last[0], last[0]))
            memory_rows.append(remembered)
            scalers.append(scaled.scaler)
            split_rows.append(rows)
            values.append(scaled.values)
        notes += [*_some(constant), *_some(unused)]
        if forgotten and source.memory_percent:
            entry = f"data.seq_len + data.pred_len = {config.seq_len + config.pred_len}"
            notes.append(
                f"{source.name}: {forgotten} of {len(source.series_set.series)} series have "
                f"training windows and no entry in a memory, which takes {entry} training rows"
            )

    dates = [one.dates for one in series_set.series] if with_dates else None
    counts = [len(source.series_set.series) for source in sources]
    number_of_source = np.repeat(np.arange(len(sources), dtype=np.int64), counts)
    own = [config.horizon_of(source) for source in sources]
    horizons = np.repeat(own, counts).tolist()

    def windows_of(split: str, stride: int) -> WindowSet:
        return WindowSet(
            values, ranges[split], config.seq_len, horizons, stride, dates, number_of_source
        )

    return ForecastData(
        series_set=replace(series_set, notes=tuple(notes)),
        scalers=tuple(scalers),
        windows={
            "train": windows_of("train", config.train_stride),
            "val": windows_of("val", 1),
            "val_selection": windows_of("val_selection", config.val_stride),
            "test": windows_of("test", 1),
        },
        split_rows=tuple(split_rows),
        memory_rows=tuple(memory_rows),
        sources=sources,
        pred_len=config.pred_len,
    )


def _selecting(series: int, most: int | None) -> frozenset[int]:
    """Numbers of the series of a source that model selection scores."""
    count = series if most is None else min(series, most)
    return frozenset(np.linspace(0, series - 1, count).astype(int).tolist())


def _long_enough(sources: Sequence[Source], config: DataConfig) -> Iterator[Source]:
    for number, source in enumerate(sources):
        with _naming(number, sources, config):
            yield long_enough(source, config)


def _naming(
    number: int, sources: Sequence[Source], config: DataConfig
) -> AbstractContextManager[None]:
    """Name the source of what is refused, where ``data.sources`` names any."""
    if config.sources is None and len(sources) == 1:
        return nullcontext()
    return naming(number, sources[number].name)


def _oldest_rows(
    source: Source, train: tuple[int, int], config: DataConfig, where: str
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Rows that are trained on, and those that the memory may hold."""
    prefix = "" if config.sources else "data."

    def share(percent: int, key: str, too_short: TooShort, pred_len: int | None) -> tuple[int, int]:
        return oldest_rows(train, percent, config, where, too_short, prefix + key, pred_len)

    # An entry's future has all steps that the model forecasts, so a series whose own horizon is
    # shorter may have windows and no entry, whatever its share.
    may_have = num_windows(train[1] - train[0], config.seq_len, config.pred_len, False) > 0
    may_lack: TooShort = source.too_short if may_have else "skip"
    return (
        share(source.percent, "percent", source.too_short, source.pred_len),
        share(source.memory_percent, "memory_percent", may_lack, None),
    )


def _some(notes: list[str]) -> list[str]:
    """The first notes of a kind, and how many there are: a corpus may have thousands."""
    if len(notes) <= _MOST_NOTES:
        return notes
    return [*notes[:_MOST_NOTES], f"{len(notes) - _MOST_NOTES} more notes of this kind"]
