"""The forecast of a few fixed validation windows, with what was retrieved for them, as a picture.

The same windows at each validation, so that the pictures show what training changes.

Shape legend (this file):
    B  windows     R  rows, B * N, row = b * N + n     L  seq_len     H  pred_len
    N  variates    K  top_k
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from dist_train import distributed, progress
from dist_train.conformal import Calibration
from dist_train.data.collate import Collator, WindowBatch
from dist_train.data.prompts import PromptBuilder
from dist_train.data.windows import ForecastData
from dist_train.figures import panel
from dist_train.figures.panel import PanelWindow
from dist_train.memory_account import account
from model.batch import RetrievedWindows
from model.instance_norm import normalize

SPLIT = "val_selection"
"""Never the test split: what is looked at during training is chosen by."""

LEVEL = 80
"""Of the intervals, in percent."""

MAX_NEIGHBOURS = 5
"""Nearest ones that are drawn."""

Forecast = Callable[[WindowBatch], tuple[Tensor, RetrievedWindows | None]]
"""Forecasts a batch on this rank's device: (B, H, N), and the neighbours of its rows."""


def collect(
    forecast: Forecast,
    data: ForecastData,
    prompt_builder: PromptBuilder | None,
    *,
    count: int,
    batch_size: int,
    anchored: bool,
    calibration: Calibration | None = None,
) -> list[PanelWindow]:
    """Forecast evenly spread windows; collective, each rank forecasts the same ones.

    Args:
        forecast: The model.
        data: The series.
        prompt_builder: Makes the prompts; None: none.
        count: Windows; of each, one variate is drawn, the next one for the next window.
        batch_size: Windows per forward pass: no more than a validation takes.
        anchored: Whether retrieved futures count from the last value of their window, else from
            its mean.
        calibration: Makes the intervals; None: none are drawn.

    Returns:
        In original units.
    """
    windows, drawn = data.windows[SPLIT], list[PanelWindow]()
    ids = [int(number) for number in windows.even_sample(count)]
    collate = Collator(windows, prompt_builder)
    progress.enter("forecast panel")
    for begin in range(0, len(ids), batch_size):
        batch = collate(ids[begin : begin + batch_size])
        with torch.no_grad(), account.phase("evaluation"):
            forecast_BHN, retrieved = forecast(batch.to(distributed.device()))
        bounds_BHN = _bounds(calibration, forecast_BHN, batch, data)
        for place in range(len(batch.window_ids)):
            drawn.append(
                _window(
                    data, batch, forecast_BHN, retrieved, bounds_BHN, place,
                    variate=(begin + place) % windows.num_variates, anchored=anchored,
                )
            )  # fmt: skip
    return drawn


def _window(
    data: ForecastData,
    batch: WindowBatch,
    forecast: Tensor,
    retrieved: RetrievedWindows | None,
    bounds: tuple[np.ndarray, np.ndarray] | None,
    place: int,
    *,
    variate: int,
    anchored: bool,
) -> PanelWindow:
    """Cut one variate of one window out of a batch, in original units."""
    windows = data.windows[SPLIT]
    series_number, start = windows.locate(int(batch.window_ids[place]))
    series, scaler = data.series_set.series[series_number], data.scalers[series_number]
    mean, scale = scaler.mean[variate], scaler.scale[variate]
    horizon = windows.horizon_of(series_number)

    def original(values: Tensor) -> np.ndarray:
        return np.asarray(values.double().cpu().numpy() * scale + mean)

    neighbours = interval = None
    if retrieved is not None:
        row = place * windows.num_variates + variate
        context_1L1 = batch.context[place, :, variate].reshape(1, -1, 1)
        _, loc_111, scale_111 = normalize(context_1L1, "last" if anchored else "mean")
        found_KH = retrieved.futures[row][retrieved.valid[row]][:MAX_NEIGHBOURS, :horizon].cpu()
        neighbours = original(found_KH * scale_111[0] + loc_111[0])
    if bounds is not None:
        lower, upper = (bound[place, :horizon, variate] * scale + mean for bound in bounds)
        interval = lower, upper
    single = windows.num_variates == 1
    return PanelWindow(
        title=series.id if single else f"{series.id}: {series.columns[variate]}",
        dates=series.dates[start : start + windows.seq_len + horizon],
        history=original(batch.context[place, :, variate]),
        truth=original(batch.target[place, :horizon, variate]),
        forecast=original(forecast[place, :horizon, variate]),
        neighbours=neighbours,
        interval=interval,
    )


def draw(
    windows: Sequence[PanelWindow], step: int, best_step: int | None = None
) -> tuple[bytes, str]:
    """Draw what :func:`collect` returned, as a PNG with its caption.

    Args:
        windows: What is drawn.
        step: Optimizer steps done.
        best_step: Step of the model that was kept, where it is this one; with intervals.
    """
    caption = f"validation windows after step {step}"
    if best_step is not None:
        caption = f"validation windows, the model of step {best_step}, {LEVEL} % intervals"
    return panel.draw(windows), caption


def _bounds(
    calibration: Calibration | None, forecast: Tensor, batch: WindowBatch, data: ForecastData
) -> tuple[np.ndarray, np.ndarray] | None:
    """Standardised bounds of the intervals, where there are any. Shape (B, H, N) each."""
    if calibration is None:
        return None
    found = calibration.intervals(batch, forecast, data, SPLIT, (LEVEL,))
    return next(((lower, upper) for _, lower, upper in found), None)
