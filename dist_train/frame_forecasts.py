"""Forecasts of data frames, given back as frames of the same kind.

Columns are named as Nixtla's libraries do: ``unique_id, ds, TimeLLM, TimeLLM-lo-95, ...`` for a
long frame, ``date, <variate>, <variate>-lo-95, ...`` for a wide one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from dist_train.data.config import DataError, quote
from dist_train.data.dates import show
from dist_train.data.frames import Expected, Frame, read_frame
from dist_train.explanation import (
    DIRECTIONS,
    MAGNITUDES,
    RowExplanation,
    explain,
    history_columns,
)
from dist_train.figures.forecast import save_forecast_figure
from dist_train.forecast_files import example_of
from dist_train.prediction import (
    SeriesForecast,
    check_horizon,
    check_levels,
    horizons_of,
    predict,
)
from dist_train.series_facts import frequencies_by_id

if TYPE_CHECKING:
    from dist_train.loading import LoadedRun

MODEL = "TimeLLM"
Missing = Literal["error", "interpolate"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Explanation:
    """What forecasts rest on, as frames of the kind that was given."""

    rows: Any
    """A row for each variate: ``unique_id, variate, direction, p_down, ..., gate, match``."""

    histories: Any
    """A row for each history that was found: ``unique_id, variate, rank, history_id,
    history_variate, start, end, future_end, weight, distance``."""

    details: list[RowExplanation]
    """The same as objects."""


def predict_frame(
    run: "LoadedRun",
    frame: Any,
    *,
    horizon: int | None,
    level: Sequence[float],
    missing: Missing,
) -> Any:
    """Forecast what follows each series of a frame.

    Raises:
        DataError: See :func:`dist_train.data.frames.read_frame` and
            :func:`dist_train.prediction.predict`.
    """
    levels = _levels(run, level)
    check_horizon(horizon, run.config.data.pred_len)
    read = read_frame(frame, _expected(run), missing)
    forecasts = predict(run, read.series_set, horizon=horizon, levels=levels)
    dates = [(read.date_column, np.concatenate([one.dates for one in forecasts]))]
    return read.give_back(_ids(forecasts), dates, _columns(read, forecasts))


def cross_validate_frame(
    run: "LoadedRun",
    frame: Any,
    *,
    n_windows: int,
    step_size: int,
    horizon: int | None,
    level: Sequence[float],
    missing: Missing,
) -> Any:
    """Forecast from several cutoffs of each series, the newest one ending with the frame.

    Raises:
        DataError: As :func:`predict_frame`, a number of windows or steps is none, or a value that
            was filled lies in what the windows read or are compared with.
    """
    levels = _levels(run, level)
    check_horizon(horizon, run.config.data.pred_len)
    for key, value in (("n_windows", n_windows), ("step_size", step_size)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
            raise DataError(f"{key}={value!r}: must be a whole number, at least 1.")
    read = read_frame(frame, _expected(run), missing)
    # One for all series: the newest forecast of each ends with the frame.
    horizon = min(horizons_of(run, read.series_set, horizon))
    cutoffs = [horizon + step_size * number for number in reversed(range(n_windows))]
    _refuse_filled(read, cutoffs[0] + run.config.data.seq_len)
    forecasts = predict(run, read.series_set, horizon=horizon, levels=levels, cutoffs=cutoffs)
    columns = _columns(read, forecasts)
    truth = [one.series.values[one.end : one.end + horizon] for one in forecasts]
    for number, name in enumerate(forecasts[0].series.columns):
        label = "y" if read.layout == "long" else f"{name}-y"
        columns.append((label, np.concatenate([part[:, number] for part in truth])))
    cutoff = [np.repeat(one.series.dates[one.end - 1], len(one.dates)) for one in forecasts]
    dates = [
        (read.date_column, np.concatenate([one.dates for one in forecasts])),
        ("cutoff", np.concatenate(cutoff)),
    ]
    return read.give_back(_ids(forecasts), dates, columns)


def _refuse_filled(read: Frame, rows: int) -> None:
    """Refuse values filled in the newest rows: what comes after a cutoff would be in them."""
    for series in read.series_set.series:
        filled = read.filled.get(series.id)
        if filled is None or filled.row < len(series.values) - rows:
            continue
        raise DataError(
            f"missing='interpolate': column {quote(filled.column)} of series {quote(series.id)} "
            f"has no value at {show(filled.date)}, among the newest {rows} rows that the windows "
            "of cross_validation read or are compared with, and would be filled from after a "
            "cutoff: fill it yourself, from what was known by then, or ask for fewer windows."
        )


def explain_frame(run: "LoadedRun", frame: Any, *, missing: Missing) -> Explanation:
    """Say what the forecasts of a frame rest on.

    Raises:
        DataError: As :func:`predict_frame`.
    """
    read = read_frame(frame, _expected(run), missing)
    forecasts = predict(run, read.series_set, with_evidence=True)
    details = explain(run, forecasts)
    rows: dict[str, Any] = {"variate": [row.variate for row in details]}
    for what, names in (("direction", DIRECTIONS), ("magnitude", MAGNITUDES)):
        shares = [getattr(row, f"{what}s") for row in details]
        if all(part is not None for part in shares):
            rows[what] = [max(part, key=part.__getitem__) for part in shares]
            for name in names:
                rows[f"p_{name.replace(' ', '_')}"] = [part[name] for part in shares]
    for what in ("gate", "match"):
        if all(getattr(row, what) is not None for row in details):
            rows[what] = [getattr(row, what) for row in details]
    histories = history_columns(details)
    found = [str(id_) for id_ in histories.pop("unique_id")]
    return Explanation(
        rows=read.make([row.series for row in details], rows),
        histories=read.make(found, histories),
        details=details,
    )


def plot_frame(
    run: "LoadedRun",
    frame: Any,
    path: Path,
    *,
    unique_id: object,
    level: Sequence[float],
    missing: Missing,
) -> None:
    """Draw the forecast of one series of a frame as a PNG file.

    Raises:
        DataError: As :func:`predict_frame`, the file exists, or there is no such series.
    """
    if path.exists():
        raise DataError(f"path={path}: exists already; name another file.")
    levels = _levels(run, level)
    series_set = read_frame(frame, _expected(run), missing).series_set
    chosen = [one for one in series_set.series if unique_id is None or str(unique_id) == one.id][:1]
    if not chosen:
        raise DataError(
            f"unique_id={unique_id!r}: the frame has no such series, but "
            f"{', '.join(one.id for one in series_set.series[:12])}."
        )
    only = replace(series_set, series=tuple(chosen))
    (forecast,) = predict(run, only, levels=levels, with_evidence=True)
    save_forecast_figure(path, example_of(run, forecast))


def _expected(run: "LoadedRun") -> Expected:
    facts, series = run.series, run.series["series"]
    return Expected(
        name=facts["name"],
        columns=tuple(series[0]["columns"]),
        num_series=len(series),
        frequency=facts["frequency"],
        date_column=run.config.data.date_column,
        frequencies=frequencies_by_id(facts) if "sources" in facts else {},
    )


def _levels(run: "LoadedRun", level: Sequence[float]) -> list[float]:
    if isinstance(level, (str, bytes)) or not isinstance(level, Sequence):
        raise DataError(f"level={level!r}: must be a list of percentages such as [80, 95], or [].")
    check_levels(run, level)
    return sorted({float(one) for one in level})


def _ids(forecasts: Sequence[SeriesForecast]) -> list[str]:
    return [one.series.id for one in forecasts for _ in one.dates]


def _columns(
    read: Frame, forecasts: Sequence[SeriesForecast]
) -> list[tuple[str, npt.NDArray[np.floating]]]:
    """Forecasts and bounds, with the names that the user finds them under."""
    columns: list[tuple[str, npt.NDArray[np.floating]]] = []
    for number, variate in enumerate(forecasts[0].series.columns):
        name = MODEL if read.layout == "long" else variate
        columns.append((name, np.concatenate([one.values[:, number] for one in forecasts])))
        bounds = [one.bounds_of(number) for one in forecasts]
        for side in bounds[0]:
            columns.append((f"{name}-{side}", np.concatenate([part[side] for part in bounds])))
    return columns
