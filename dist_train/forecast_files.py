"""``timellm predict``: forecasts of a file as tables and a picture.

Shape legend (this file):
    L  seq_len   H  pred_len   h  horizon   N  variates
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dist_train.data.config import DataError
from dist_train.explanation import analogues, explain, history_columns
from dist_train.figures.forecast import ForecastExample, save_forecast_figure
from dist_train.loading import LoadedRun
from dist_train.prediction import SeriesForecast, load_newest, predict
from memory_index.atomic_file import write_text

MAX_DRAWN = 5
TABLE, FIGURE, RETRIEVED = "forecast.csv", "forecast.png", "retrieved.csv"


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """What ``timellm predict`` was asked for."""

    out: Path
    path: str | None = None
    """File to forecast; None: the run's own data."""

    reading: Mapping[str, Any] = field(default_factory=dict)
    """See :func:`dist_train.prediction.load_newest`."""

    horizon: int | None = None
    levels: Sequence[float] | None = None
    """None: see :meth:`dist_train.loading.LoadedRun.choose_levels`."""


def predict_file(run: LoadedRun, options: PredictOptions) -> list[Path]:
    """Forecast a file and write what came of it.

    Returns:
        The files written.

    Raises:
        DataError: The folder already holds a forecast, or as
            :func:`dist_train.prediction.predict`.
    """
    for name in (TABLE, FIGURE, RETRIEVED):
        if (options.out / name).exists():
            raise DataError(f"--out {options.out}: {name} already exists; name another folder.")
    levels = run.choose_levels(options.levels)
    series_set = load_newest(run, options.path, options.reading)
    forecasts = predict(
        run,
        series_set,
        horizon=options.horizon,
        levels=sorted(set(levels)),
        with_evidence=True,
    )
    return write_forecasts(options.out, run, forecasts)


def write_forecasts(out: Path, run: LoadedRun, forecasts: list[SeriesForecast]) -> list[Path]:
    """Write the files of forecasts that were made with evidence, into a folder without any."""
    out.mkdir(parents=True, exist_ok=True)
    written = [out / TABLE, out / FIGURE]
    write_text(out / TABLE, pd.concat(_table(one) for one in forecasts).to_csv(index=False))
    save_forecast_figure(out / FIGURE, example_of(run, forecasts[0]))
    if run.retriever is not None:
        found = pd.DataFrame(history_columns(explain(run, forecasts)))
        write_text(out / RETRIEVED, found.to_csv(index=False))
        written.append(out / RETRIEVED)
    return written


def _table(forecast: SeriesForecast) -> pd.DataFrame:
    """A row for each variate and step: unique_id, ds, variate, forecast, lo-95, ... hi-95."""
    parts = []
    for number, variate in enumerate(forecast.series.columns):
        columns: dict[str, Any] = {
            "unique_id": forecast.series.id,
            "ds": forecast.dates,
            "variate": variate,
            "forecast": forecast.values[:, number],
        }
        parts.append(pd.DataFrame(columns | forecast.bounds_of(number)))
    return pd.concat(parts)


def example_of(run: LoadedRun, forecast: SeriesForecast) -> ForecastExample:
    """What is drawn of a forecast that was made with evidence."""
    past = slice(None, forecast.end)
    return ForecastExample(
        dates=np.concatenate([forecast.series.dates[past], forecast.dates]),
        history=forecast.series.values[past],
        truth=None,
        forecasts={"Time-LLM": forecast.values},
        columns=forecast.series.columns,
        intervals=forecast.intervals,
        analogues=_drawn(run, forecast),
    )


def _drawn(run: LoadedRun, forecast: SeriesForecast) -> np.ndarray | None:
    """What followed the nearest histories, on the level of the forecast. (K, h, N)."""
    if run.retriever is None:
        return None
    drawn_NKh = analogues(run, forecast)[:, :MAX_DRAWN, : len(forecast.dates)]
    return drawn_NKh.transpose(1, 2, 0)
