"""Forecast what comes after windows of series, many at once.

Shape legend (this file):
    W  windows     L  seq_len     N  variates     R  W * N rows, row = w * N + n
    K  neighbours  H  pred_len    h  horizon, the first steps of it
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from dist_train import local_copy
from dist_train.data.collate import WindowBatch
from dist_train.data.config import DataConfig, DataError, quote
from dist_train.data.dates import Dates, continue_dates, steps_like
from dist_train.data.frequency import at_frequency
from dist_train.data.series import Series, SeriesSet, from_table
from dist_train.data.tables import read_table
from dist_train.data.windows import load_forecast_data
from dist_train.retrieval import Neighbours, Retriever
from dist_train.series_facts import Known, KnownSeries
from model.batch import ForecastOutput, TrendPrediction

if TYPE_CHECKING:
    from dist_train.loading import LoadedRun

Floats = npt.NDArray[np.floating]


@dataclass(frozen=True, kw_only=True, eq=False)
class Evidence:
    """What one window's forecast rests on, beside the window itself. On the CPU, rows first."""

    output: ForecastOutput
    """Trend, gate and match of the N rows; the forecast is the whole horizon's."""

    neighbours: Neighbours | None
    """Shape (N, K); None without a memory."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SeriesForecast:
    """The forecast that follows one window, in original units."""

    series: Series
    """Its variates are those of the training, in their order."""

    end: int
    """Rows of the series that the forecast comes after."""

    dates: Dates
    """Time stamps of the forecast. Shape (h,), datetime64[ns]."""

    values: Floats
    """Shape (h, N)."""

    intervals: Mapping[float, tuple[Floats, Floats]] = field(default_factory=dict)
    """Lower and upper bound by level in percent. Shape (h, N) each."""

    evidence: Evidence | None = None
    """None unless it was asked for."""

    def bounds_of(self, variate: int) -> dict[str, Floats]:
        """Bounds of one variate by name: lo-95, lo-80, hi-80, hi-95. Shape (h,) each."""
        levels = sorted(self.intervals)
        sides = [("lo", 0, level) for level in reversed(levels)]
        sides += [("hi", 1, level) for level in levels]
        return {
            f"{side}-{level:g}": self.intervals[level][which][:, variate]
            for side, which, level in sides
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class _Window:
    series: Series
    known: Known
    end: int
    horizon: int


def predict(
    run: "LoadedRun",
    series_set: SeriesSet,
    *,
    horizon: int | None = None,
    levels: Sequence[float] = (),
    cutoffs: Sequence[int] = (0,),
    with_evidence: bool = False,
) -> list[SeriesForecast]:
    """Forecast the steps after the end of every series; all windows in as few passes as fit.

    Args:
        run: The trained forecaster.
        series_set: Series with the variates the run was trained on, in any order.
        horizon: Steps to forecast; None: all that the model was trained for, of each source its
            own.
        levels: Of the intervals, in percent.
        cutoffs: Rows left away at the end of each series, one forecast for each.
        with_evidence: Keep what the forecasts rest on.

    Returns:
        Series by series, in the order of ``cutoffs``.

    Raises:
        DataError: A series is too short, lacks a variate, is unknown to the run, or has time
            stamps of another frequency than the training's or that cannot be continued; the
            horizon or a level cannot be had.
    """
    check_horizon(horizon, run.config.data.pred_len)
    check_levels(run, levels)
    known = KnownSeries(run.series)
    found = [_as_trained(known, one) for one in series_set.series]
    horizons = horizons_of(run, series_set, horizon, known)
    frequencies = list(dict.fromkeys(entry.frequency for _, entry in found))
    for frequency in frequencies:
        series_set = at_frequency(series_set, frequency, series_set.name)
    windows = [
        _Window(series=one, known=entry, end=len(one.values) - cutoff, horizon=steps)
        for (one, entry), steps in zip(found, horizons, strict=True)
        for cutoff in cutoffs
    ]
    for window in windows:
        _check_length(window, run.config.data.seq_len, len(window.series.values) - window.end)
    forecasts: list[SeriesForecast] = []
    size = run.config.train.eval_batch_size
    for first in range(0, len(windows), size):
        part = windows[first : first + size]
        context_WLN = _contexts(part, run.config.data.seq_len)
        output, neighbours = _forecast(run, part, context_WLN)
        values_WHN = output.forecast.double().numpy()
        bounds = _bounds(run, part, context_WLN, values_WHN, levels)
        for number, window in enumerate(part):
            inverse, horizon = window.known.scaler.inverse, window.horizon
            forecasts.append(
                SeriesForecast(
                    series=window.series,
                    end=window.end,
                    dates=_dates_after(
                        window,
                        # Only a run's own sources differ in it, and it is known of each.
                        window.known.frequency if len(frequencies) > 1 else series_set.frequency,
                    ),
                    values=inverse(values_WHN[number, :horizon]),
                    intervals={
                        level: (inverse(lower[number, :horizon]), inverse(upper[number, :horizon]))
                        for level, (lower, upper) in bounds.items()
                    },
                    evidence=_evidence(output, neighbours, number) if with_evidence else None,
                )
            )
    return forecasts


def horizons_of(
    run: "LoadedRun",
    series_set: SeriesSet,
    horizon: int | None,
    known: KnownSeries | None = None,
) -> list[int]:
    """Steps to forecast of each series.

    Args:
        run: The trained forecaster.
        series_set: The series.
        horizon: What was asked for; None: all that each was trained for.
        known: What the run knows of its series; None: it is looked up.

    Raises:
        DataError: As :func:`check_horizon`, or a series was trained for fewer steps or is unknown.
    """
    known = known or KnownSeries(run.series)
    horizons = run.config.data.horizons
    own = [horizons[known.find(one.id).source] for one in series_set.series]
    if horizon is None:
        return own
    horizon = check_horizon(horizon, run.config.data.pred_len)
    for one, steps in zip(series_set.series, own, strict=True):
        if horizon > steps:
            raise DataError(
                f"horizon={horizon}: series {quote(one.id)} is of a source whose pred_len is "
                f"{steps}; ask for at most these, or leave horizon out and get of each series "
                "what it was trained for."
            )
    return [horizon] * len(own)


def check_horizon(horizon: int | None, pred_len: int) -> int:
    """Resolve and check a number of steps.

    Raises:
        DataError: It is no number of at least 1, or more than the model was trained for.
    """
    if horizon is None:
        return pred_len
    if isinstance(horizon, bool) or not isinstance(horizon, (int, np.integer)) or horizon < 1:
        raise DataError(f"horizon={horizon!r}: must be a whole number of steps, at least 1.")
    if horizon > pred_len:
        raise DataError(
            f"horizon={horizon}: the model was trained for {pred_len} steps (data.pred_len); ask "
            "for at most these, or train a model with a longer data.pred_len."
        )
    return int(horizon)


def check_levels(run: "LoadedRun", levels: Sequence[float]) -> None:
    """Refuse intervals that the run cannot give.

    Raises:
        DataError: It has no calibration, or validation was too short for a level.
    """
    if not levels:
        return
    if run.calibration is None:
        raise DataError(
            f"level={list(levels)}: this run has no calibration, so no intervals; make one with "
            "timellm evaluate --run RUN (then export it anew), or ask for level=[] and get the "
            "forecasts alone."
        )
    for level in levels:
        run.calibration.check_level(level)


def load_newest(
    run: "LoadedRun", path: str | None, reading: Mapping[str, Any] | None = None
) -> SeriesSet:
    """Read the series to forecast.

    Args:
        run: Of a wide file its variates are read, and further columns left alone.
        path: The file; None: the data that the run was trained on.
        reading: Keys of ``data`` that say how the file is read, where not as in the training.

    Raises:
        DataError: The file cannot be used, lacks a variate, or there is none to be read so.
    """
    config, reading = run.config.data, reading or {}
    if path is None:
        for key, value in reading.items():
            raise DataError(
                f"--data.{key}={value}: it says how a file is read; name that with --data.path."
            )
        return load_forecast_data(config).series_set
    label, file = f"data.path={path}", Path(path).expanduser()
    table, _ = read_table(local_copy.find(file), label)
    same = ("missing", "dates", "layout", "date_column", "columns")
    data = DataConfig(path=path, **{key: getattr(config, key) for key in same} | dict(reading))
    data = replace(data, columns=_columns_to_read(run, data, list(table.columns), label))
    series_set = from_table(table, data, name=file.stem)
    # Skipped stamps hinder nobody who asked for it; rows in disorder have no newest window.
    ends_newest = all(one.dates[-1] == one.dates.max() for one in series_set.series)
    trained = run.series["frequency"]
    if data.dates == "as_is" and series_set.frequency is None and ends_newest and trained:
        other = next((one for one in series_set.series if not steps_like(one.dates, trained)), None)
        if other is not None:
            raise DataError(
                f"the time stamps of series {other.id} in {label} are mostly not {trained} apart, "
                f"as the model was trained on: bring them to {trained}."
            )
        return replace(series_set, frequency=trained)
    return series_set


def _columns_to_read(
    run: "LoadedRun", data: DataConfig, names: list[str], label: str
) -> list[str] | None:
    """``data.columns`` of a file with some columns."""
    is_long = data.layout == "long" or (data.layout == "auto" and {"unique_id", "y"} <= set(names))
    known = run.series["series"]
    if is_long or len(known) > 1:
        return data.columns
    columns: list[str] = known[0]["columns"]
    missing = [name for name in columns if name not in names]
    if missing:
        raise DataError(
            f"column {quote(missing[0])} is missing in {label}: the model was trained on "
            f"{', '.join(columns[:12])}; the file has {', '.join(names[:12])}."
        )
    return columns


def _as_trained(known: KnownSeries, series: Series) -> tuple[Series, Known]:
    """The series with the variates of the training, in their order, and what is known of it."""
    entry = known.find(series.id)
    if entry.columns == series.columns:
        return series, entry
    missing = [name for name in entry.columns if name not in series.columns]
    if missing:
        raise DataError(
            f"column {quote(missing[0])} is missing in series {series.id}: the model was trained "
            f"on {', '.join(entry.columns)}; the series has {', '.join(series.columns)}."
        )
    values_TN = series.values[:, [series.columns.index(name) for name in entry.columns]]
    return replace(series, values=values_TN, columns=entry.columns), entry


def _check_length(window: _Window, seq_len: int, cutoff: int) -> None:
    if window.end >= seq_len:
        return
    left = f", and {max(window.end, 0)} before the cutoff" if cutoff else ""
    raise DataError(
        f"series {window.series.id}: has {len(window.series.values)} rows{left}, the model reads "
        f"data.seq_len={seq_len}; give a longer history"
        + (", or fewer windows." if cutoff else ".")
    )


def _dates_after(window: _Window, frequency: str | None) -> Dates:
    series, end, horizon = window.series, window.end, window.horizon
    known = series.dates[end : end + horizon]
    if len(known) == horizon:
        return known
    if frequency is None:
        raise DataError(
            f"series {series.id}: its time stamps have no constant frequency, so the next "
            f"{horizon} cannot be named; give regular time stamps."
        )
    return continue_dates(series.dates[end - 1], frequency, horizon)


def _contexts(windows: Sequence[_Window], seq_len: int) -> npt.NDArray[np.float32]:
    """Standardised windows. Shape (W, L, N)."""
    num_variates = len(windows[0].series.columns)
    # In one order in memory, whatever that of the table was: sums depend on it by a bit.
    context_WLN = np.empty((len(windows), seq_len, num_variates), dtype=np.float32)
    for number, one in enumerate(windows):
        rows = one.series.values[one.end - seq_len : one.end]
        context_WLN[number] = one.known.scaler.transform(rows)
    return context_WLN


def _forecast(
    run: "LoadedRun", windows: Sequence[_Window], context: npt.NDArray[np.float32]
) -> tuple[ForecastOutput, Neighbours | None]:
    """Forecast some windows in one pass; both on the CPU, rows first."""
    last_dates = np.array([one.series.dates[one.end - 1] for one in windows])
    batch = run.batch_of(context, last_dates, [one.known.source for one in windows])
    retrieved, neighbours = None, None
    if run.retriever is not None:
        neighbours = _search(run.retriever, windows, batch)
        retrieved = run.retriever.fetch(neighbours)
    output = run.output_with(batch, retrieved)
    return _on_cpu(output), neighbours


def _bounds(
    run: "LoadedRun",
    windows: Sequence[_Window],
    context: npt.NDArray[np.float32],
    forecast: Floats,
    levels: Sequence[float],
) -> dict[float, tuple[Floats, Floats]]:
    """Intervals by level, standardised. Shape (W, H, N) each."""
    if run.calibration is None or not levels:
        return {}
    num_variates = context.shape[2]
    numbers_W = np.array([one.known.number for one in windows], dtype=np.int64)
    channels_WN = numbers_W[:, None] * num_variates + np.arange(num_variates)
    return {
        level: run.calibration.interval(forecast, context, channels_WN, level) for level in levels
    }


def _search(retriever: Retriever, windows: Sequence[_Window], batch: WindowBatch) -> Neighbours:
    """Find histories for newest windows: only such as end before these begin.

    A window is placed among the rows that the memory was made from by its newest time stamp; a
    run that knows one series takes any other for that one, as its scaler does.
    """
    known = retriever.data.series_set.series
    series_W = np.array([one.known.number for one in windows], dtype=np.int64)
    ends_W = np.array(
        [
            rows_until(known[number].dates, one.series.dates[one.end - 1])
            for number, one in zip(series_W, windows, strict=True)
        ],
        dtype=np.int64,
    )
    starts_W = ends_W - batch.context.shape[1]
    return retriever.search(batch.context, series_W, starts_W, past_only=True)


def rows_until(dates: Dates, stamp: np.datetime64) -> int:
    """Rows of a series up to a time stamp, those included that would follow its own."""
    if len(dates) < 2 or stamp <= dates[-1]:
        return int(np.searchsorted(dates, stamp, side="right"))
    stamps_ns = dates.astype("datetime64[ns]").astype(np.int64)
    # The longest step: never later than it really is, or a window could see what overlaps it.
    step_ns = int(np.diff(stamps_ns).max())
    after_ns = int(stamp.astype("datetime64[ns]").astype(np.int64)) - int(stamps_ns[-1])
    return len(dates) + after_ns // step_ns


def _on_cpu(output: ForecastOutput) -> ForecastOutput:
    """Forecast, trend, gate, match and weights on the CPU; labels are dropped."""

    def moved(part: torch.Tensor | None) -> torch.Tensor | None:
        return None if part is None else part.cpu()

    trend = output.trend
    if trend is not None:
        trend = TrendPrediction(trend.direction.cpu(), trend.magnitude.cpu(), moved(trend.change))
    return ForecastOutput(
        forecast=output.forecast.cpu(),
        trend=trend,
        gate=moved(output.gate),
        match=moved(output.match),
        neighbour_weights=moved(output.neighbour_weights),
    )


def _evidence(output: ForecastOutput, neighbours: Neighbours | None, number: int) -> Evidence:
    """Cut the rows of one window out of a batch."""
    num_variates = output.forecast.shape[2]
    rows = slice(number * num_variates, (number + 1) * num_variates)

    def cut(part: torch.Tensor | None) -> torch.Tensor | None:
        return None if part is None else part[rows]

    trend = output.trend
    if trend is not None:
        trend = TrendPrediction(trend.direction[rows], trend.magnitude[rows], cut(trend.change))
    return Evidence(
        output=ForecastOutput(
            forecast=output.forecast[number : number + 1],
            trend=trend,
            gate=cut(output.gate),
            match=cut(output.match),
            neighbour_weights=cut(output.neighbour_weights),
        ),
        neighbours=None
        if neighbours is None
        else Neighbours(
            ids=neighbours.ids[rows],
            weights=neighbours.weights[rows],
            distances=neighbours.distances[rows],
        ),
    )
