"""A forecast after its history, with intervals where there are some.

Shape legend (this file):
    L  steps of history   H  pred_len   N  variates
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dist_train.figures import style

if TYPE_CHECKING:
    from dist_train.figures.style import Axes

MAX_PANELS = 4
HISTORY_PER_HORIZON = 3  # steps of history shown for each step of forecast


@dataclass(frozen=True, kw_only=True)
class ForecastExample:
    """One window with its forecasts, in original units."""

    dates: np.ndarray
    """Time stamps of history and horizon. Shape (L + H,), datetime64."""

    history: np.ndarray
    """What the forecasters saw. Shape (L, N)."""

    truth: np.ndarray | None
    """What came after, where it is known. Shape (H, N)."""

    forecasts: Mapping[str, np.ndarray]
    """Forecasts by name. Shape (H, N) each."""

    columns: Sequence[str]
    """Names of the variates, with units where the file gives them."""

    intervals: Mapping[float, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    """Lower and upper bounds of the model's forecast by level in percent. Shape (H, N) each."""

    analogues: np.ndarray | None = None
    """What followed the histories that were found, on the level of the forecast; NaN where there
    is none. Shape (K, H, N)."""


def save_forecast_figure(path: Path, example: ForecastExample) -> None:
    """Draw a forecast after its history."""
    figure, panels = style.panels(min(example.history.shape[1], MAX_PANELS))
    draw_example(panels, example)
    style.save(figure, path)


def draw_example(panels: "Sequence[Axes]", example: ForecastExample) -> None:
    """Draw the first variates of a window, a panel each, and say how many are left out."""
    for number, axes in enumerate(panels):
        draw_variate(axes, example, number)
    top = panels[0].get_ylim()
    panels[0].set_ylim(top[0], top[1] + 0.25 * (top[1] - top[0]))  # room for the legend
    panels[0].legend(fontsize=8, ncols=6, loc="upper left")
    left_out = example.history.shape[1] - len(panels)
    if left_out > 0:
        panels[-1].set_xlabel(f"{left_out} more variates not shown", fontsize=8)


def draw_variate(axes: "Axes", example: ForecastExample, number: int) -> None:
    """Draw one variate of a window: history, truth, forecasts, intervals."""
    horizon = len(next(iter(example.forecasts.values())))
    shown = min(len(example.history), HISTORY_PER_HORIZON * horizon)
    past = example.dates[len(example.history) - shown : len(example.history)]
    future = example.dates[len(example.history) :]
    # The wider one first, below the others.
    for level, (lower, upper) in sorted(example.intervals.items(), reverse=True):
        shade = 0.15 if level > 90 else 0.3
        axes.fill_between(
            future, lower[:, number], upper[:, number], color=style.BLUE, alpha=shade, lw=0,
            label=f"{level:g} % interval",
        )  # fmt: skip
    if example.analogues is not None:
        for rank, values in enumerate(example.analogues[..., number]):
            label = "after histories found" if rank == 0 else None
            axes.plot(future, values, color="0.6", lw=0.8, label=label)
    axes.plot(past, example.history[-shown:, number], color="black", label="history")
    if example.truth is not None:
        axes.plot(future, example.truth[:, number], color="black", ls=":", label="truth")
    for name, values in example.forecasts.items():
        axes.plot(future, values[:, number], label=name, **style.forecaster(name))
    axes.axvline(future[0], color="0.7", lw=0.8)
    axes.set_ylabel(style.shorten(example.columns[number]))
    style.use_dates(axes)
