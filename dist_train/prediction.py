"""Forecast what comes after the newest window of a file.

Shape legend (this file):
    L  seq_len   H  pred_len   N  variates
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from dist_train.config import RunConfig
from dist_train.data.collate import WindowBatch
from dist_train.data.config import DataConfig, DataError
from dist_train.data.series import Series, SeriesSet, load_series
from dist_train.figures import forecast as forecast_figure
from dist_train.series_facts import known_series
from memory_index.atomic_file import write_text
from model.batch import RetrievedWindows

if TYPE_CHECKING:
    from dist_train.loading import LoadedRun


@dataclass(frozen=True, kw_only=True)
class SeriesForecast:
    """The forecast of one series, in original units."""

    series: Series
    dates: np.ndarray
    """Time stamps of the forecast. Shape (H,), datetime64[ns]."""

    values: np.ndarray
    """Shape (H, N)."""


def predict(run: "LoadedRun", series_set: SeriesSet) -> list[SeriesForecast]:
    """Forecast the H steps after the end of every series.

    Args:
        run: The trained forecaster.
        series_set: Series with the variates the run was trained on, in any order.

    Raises:
        DataError: A series is too short, lacks a variate, is unknown to the run, or has time
            stamps that cannot be continued.
    """
    forecasts = []
    for series in series_set.series:
        scaler, columns = known_series(run.series, series.id)
        values_TN = _select(series, columns)
        seq_len, pred_len = run.config.data.seq_len, run.config.data.pred_len
        if len(values_TN) < seq_len:
            raise DataError(
                f"series {series.id}: has {len(values_TN)} rows, the model reads "
                f"data.seq_len={seq_len}; give a longer file."
            )
        context_BLN = scaler.transform(values_TN[-seq_len:])[None].astype(np.float32)
        prompts = run.prompt_builder(context_BLN) if run.prompt_builder else None
        batch = WindowBatch(
            context=torch.from_numpy(context_BLN),
            target=torch.zeros(1, pred_len, len(columns)),
            window_ids=torch.zeros(1, dtype=torch.int64),
            num_valid=1,
            prompt_ids=None if prompts is None else torch.as_tensor(prompts[0]),
            prompt_mask=None if prompts is None else torch.as_tensor(prompts[1]),
        )
        retrieved = _retrieve(run, series, context_BLN)
        forecast_BHN = run.forecast_with(batch, retrieved).double().cpu().numpy()
        forecasts.append(
            SeriesForecast(
                series=dataclasses.replace(series, values=values_TN, columns=tuple(columns)),
                dates=future_dates(series, series_set.frequency, pred_len),
                values=scaler.inverse(forecast_BHN[0]),
            )
        )
    return forecasts


def future_dates(series: Series, frequency: str | None, pred_len: int) -> np.ndarray:
    """Continue the time stamps of a series.

    Raises:
        DataError: They have no constant frequency.
    """
    import pandas as pd

    if frequency is None:
        raise DataError(
            f"series {series.id}: its time stamps have no constant frequency, so the next "
            f"{pred_len} cannot be named; give a file with regular time stamps."
        )
    return pd.date_range(series.dates[-1], periods=pred_len + 1, freq=frequency)[1:].to_numpy()


def write_forecasts(out: Path, forecasts: list[SeriesForecast]) -> list[Path]:
    """Write ``forecast.csv`` (long: unique_id, ds, variate, forecast) and ``forecast.png``.

    Raises:
        DataError: The folder already holds a forecast.
    """
    import pandas as pd

    table, figure = out / "forecast.csv", out / "forecast.png"
    for path in (table, figure):
        if path.exists():
            raise DataError(f"--out {out}: {path.name} already exists; name another folder.")
    out.mkdir(parents=True, exist_ok=True)
    frames = [
        pd.DataFrame(item.values, columns=list(item.series.columns))
        .assign(unique_id=item.series.id, ds=item.dates)
        .melt(id_vars=["unique_id", "ds"], var_name="variate", value_name="forecast")
        for item in forecasts
    ]
    write_text(table, pd.concat(frames).to_csv(index=False))
    first = forecasts[0]
    forecast_figure.save_forecast_figure(
        figure,
        forecast_figure.ForecastExample(
            dates=np.concatenate([first.series.dates, first.dates]),
            history=first.series.values,
            truth=None,
            forecasts={"Time-LLM": first.values},
            columns=first.series.columns,
        ),
    )
    return [table, figure]


def load_newest(config: RunConfig, path: str | None) -> SeriesSet:
    """Read the file to forecast: ``path``, or else the data the run was trained on."""
    if path is None:
        return load_series(config.data)
    return load_series(
        DataConfig(
            path=path,
            missing=config.data.missing,
            dates=config.data.dates,
            layout=config.data.layout,
            date_column=config.data.date_column,
            columns=config.data.columns,
        )
    )


def _retrieve(run: "LoadedRun", series: Series, context: np.ndarray) -> RetrievedWindows | None:
    """Find histories for the newest window of a series: only such as end before it forecasts.

    The window is placed among the rows that the memory was made from by its newest time stamp; a
    run that knows one series takes any other for that one, as its scaler does.
    """
    retriever = run.retriever
    if retriever is None:
        return None
    known = retriever.data.series_set.series
    number = next((i for i, one in enumerate(known) if one.id == series.id), 0)
    first_forecast_row = int(np.searchsorted(known[number].dates, series.dates[-1], side="right"))
    neighbours = retriever.search(
        torch.from_numpy(context),
        np.array([number]),
        np.array([first_forecast_row - context.shape[1]]),
        past_only=True,
    )
    return retriever.fetch(neighbours)


def _select(series: Series, columns: list[str]) -> np.ndarray:
    missing = [name for name in columns if name not in series.columns]
    if missing:
        raise DataError(
            f"column {missing[0]!r} is missing in series {series.id}: the model was trained on "
            f"{', '.join(columns)}; the file has {', '.join(series.columns)}."
        )
    return series.values[:, [series.columns.index(name) for name in columns]]
