"""Figures of a run and of a forecast, in colours that colour-blind readers can tell apart.

Shape legend (this file):
    L  steps of history   H  pred_len   N  variates
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito 2008, one colour per forecaster wherever it is drawn; black is what was observed.
COLOURS = {
    "Time-LLM": "#0072B2",
    "ridge": "#D55E00",
    "ridge + retrieval": "#009E73",
    "DLinear": "#CC79A7",
    "seasonal naive": "#E69F00",
    "repeat last": "#56B4E9",
}
OTHER_COLOUR = "#999999"
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


def save_run_figure(
    path: Path, example: ForecastExample, mse_per_step: Mapping[str, Sequence[float]]
) -> None:
    """Draw one test window, and below it the error of every forecaster at each step."""
    figure, panels = _grid(min(example.history.shape[1], MAX_PANELS) + 1)
    _draw_example(panels[:-1], example)
    axes = panels[-1]
    for name, values in list(mse_per_step.items())[::-1]:  # the model last, on top of the others
        # Broad, for it often lies right under the model that starts from it.
        width = 4.0 if name == "ridge + retrieval" else 1.5
        steps = np.arange(1, len(values) + 1)
        axes.plot(steps, values, color=_colour(name), label=name, lw=width)
    # Repeat-last may leave the picture: what is to be compared lies far below it.
    compared = [max(v) for name, v in mse_per_step.items() if name != "repeat last"]
    top = 1.15 * max(compared, default=1.0) or None
    axes.set(xlabel="forecast step", ylabel="test MSE (standardised)", ylim=(0, top))
    axes.legend(fontsize=8, ncols=2)
    _save(figure, path)


def save_forecast_figure(path: Path, example: ForecastExample) -> None:
    """Draw a forecast after its history."""
    figure, panels = _grid(min(example.history.shape[1], MAX_PANELS))
    _draw_example(panels, example)
    _save(figure, path)


def _draw_example(panels: "Sequence[Axes]", example: ForecastExample) -> None:
    from matplotlib import dates

    horizon = len(next(iter(example.forecasts.values())))
    shown = min(len(example.history), HISTORY_PER_HORIZON * horizon)
    past = example.dates[len(example.history) - shown : len(example.history)]
    future = example.dates[len(example.history) :]
    for number, axes in enumerate(panels):
        axes.plot(past, example.history[-shown:, number], color="black", label="history")
        if example.truth is not None:
            axes.plot(future, example.truth[:, number], color="black", ls=":", label="truth")
        for name, values in example.forecasts.items():
            axes.plot(future, values[:, number], color=_colour(name), label=name)
        axes.axvline(future[0], color="0.7", lw=0.8)
        axes.set_ylabel(example.columns[number])
        locator = dates.AutoDateLocator()  # type: ignore[no-untyped-call]
        axes.xaxis.set_major_locator(locator)
        concise = dates.ConciseDateFormatter(locator)  # type: ignore[no-untyped-call]
        axes.xaxis.set_major_formatter(concise)
        axes.tick_params(axis="x", labelsize=8)
    panels[0].legend(fontsize=8, ncols=4, loc="upper left")
    left_out = example.history.shape[1] - len(panels)
    if left_out > 0:
        panels[-1].set_xlabel(f"{left_out} more variates not shown", fontsize=8)


def _colour(name: str) -> str:
    return COLOURS.get(name, OTHER_COLOUR)


def _grid(count: int) -> "tuple[Figure, list[Axes]]":
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(count, 1, figsize=(9, 2.6 * count), squeeze=False)
    return figure, list(panels[:, 0])


def _save(figure: "Figure", path: Path) -> None:
    from matplotlib import pyplot

    figure.tight_layout()
    beside = path.with_name(f".{path.name}")
    figure.savefig(beside, dpi=120, format="png")
    pyplot.close(figure)
    beside.replace(path)
