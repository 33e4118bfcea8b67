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
from model.batch import RetrievedWindows, to_rows
from model.instance_norm import VARIANCE_FLOOR

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
    anchored: bool,
    calibration: Calibration | None = None,
) -> list[PanelWindow]:
    """Forecast evenly spread windows; collective, each rank forecasts the same ones.

    Args:
        forecast: The model.
        data: The series.
        prompt_builder: Makes the prompts; None: none.
        count: Windows; of each, one variate is drawn, the next one for the next window.
        anchored: Whether retrieved futures count from the last value of their window, else from
            its mean.
        calibration: Makes the intervals; None: none are drawn.

    Returns:
        In original units.
    """
    windows = data.windows[SPLIT]
    ids = [int(number) for number in windows.even_sample(count)]
    progress.enter("forecast panel")
    batch = Collator(windows, prompt_builder)(ids)
    with torch.no_grad(), account.phase("evaluation"):
        forecast_BHN, retrieved = forecast(batch.to(distributed.device()))
    bounds_BHN = _bounds(calibration, forecast_BHN, batch, data)
    levels_R, scales_R = _level_and_scale(to_rows(batch.context), anchored=anchored)
    drawn = []
    for place, number in enumerate(ids):
        series_number, start = windows.locate(number)
        series, scaler = data.series_set.series[series_number], data.scalers[series_number]
        variate = place % windows.num_variates
        row = place * windows.num_variates + variate
        mean, scale = scaler.mean[variate], scaler.scale[variate]

        def original(values: Tensor, scale: float = scale, mean: float = mean) -> np.ndarray:
            return np.asarray(values.double().cpu().numpy() * scale + mean)

        neighbours = None
        if retrieved is not None:
            found_KH = retrieved.futures[row][retrieved.valid[row]][:MAX_NEIGHBOURS].cpu()
            neighbours = original(levels_R[row] + scales_R[row] * found_KH)
        single = windows.num_variates == 1
        drawn.append(
            PanelWindow(
                title=series.id if single else f"{series.id}: {series.columns[variate]}",
                dates=series.dates[start : start + windows.seq_len + windows.pred_len],
                history=original(batch.context[place, :, variate]),
                truth=original(batch.target[place, :, variate]),
                forecast=original(forecast_BHN[place, :, variate]),
                neighbours=neighbours,
                interval=bounds_BHN
                and tuple(bound[place, :, variate] * scale + mean for bound in bounds_BHN),
            )
        )
    return drawn


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
    if calibration is None or calibration.levels[-1] < LEVEL:
        return None
    channels_BN = data.channels_of(batch.window_ids.numpy(), SPLIT)
    context_BLN = batch.context.numpy()
    return calibration.interval(forecast.double().cpu().numpy(), context_BLN, channels_BN, LEVEL)


def _level_and_scale(rows: Tensor, *, anchored: bool) -> tuple[Tensor, Tensor]:
    """What a retrieved future is put onto: as retrieval alone forecasts. (R, L) -> (R,), (R,)."""
    scales_R = (rows.var(dim=1, correction=0) + VARIANCE_FLOOR).sqrt()
    return (rows[:, -1] if anchored else rows.mean(dim=1)), scales_R
