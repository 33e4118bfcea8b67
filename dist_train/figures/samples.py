"""A few windows with forecast and intervals, and beside each the histories that were retrieved."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dist_train.figures import style
from dist_train.figures.forecast import HISTORY_PER_HORIZON, ForecastExample, draw_variate

if TYPE_CHECKING:
    from dist_train.figures.style import Axes

NEIGHBOUR_COLOURS = (style.ORANGE, style.SKY, style.PINK, style.GREY)


@dataclass(frozen=True, kw_only=True)
class RetrievedHistory:
    """A neighbour of a window, put onto the window's level and scale."""

    name: str
    """When its future began, and of which variate it is."""

    values: np.ndarray
    """History and future, original units of the window. Shape (L + H,)."""


@dataclass(frozen=True, kw_only=True)
class ForecastSample:
    """One variate of one window."""

    example: ForecastExample
    variate: int
    """Number of the variate that is drawn."""

    neighbours: Sequence[RetrievedHistory]
    """The nearest first; empty where the run has no memory."""


def save_sample_figure(path: Path, samples: Sequence[ForecastSample]) -> None:
    """Draw samples below each other; neighbours stand in a second column, if there are any."""
    with_neighbours = any(sample.neighbours for sample in samples)
    columns = 2 if with_neighbours else 1
    figure, panels = style.panels(len(samples), columns=columns, heights=[1.25] * len(samples))
    for number, sample in enumerate(samples):
        left = panels[columns * number]
        draw_variate(left, sample.example, sample.variate)
        start = np.datetime_as_string(
            sample.example.dates[len(sample.example.history)], unit="m"
        ).replace("T", " ")
        left.set_title(f"forecast from {start}", fontsize=9, loc="left")
        if with_neighbours:
            _draw_neighbours(panels[columns * number + 1], sample)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, ncols=7, loc="outside upper left")
    style.save(figure, path)


def _draw_neighbours(axes: "Axes", sample: ForecastSample) -> None:
    example, variate = sample.example, sample.variate
    history = example.history[:, variate]
    horizon = len(next(iter(example.forecasts.values())))
    shown = min(len(history), HISTORY_PER_HORIZON * horizon)
    past, future = np.arange(-shown, 0), np.arange(horizon)
    for number, one in enumerate(sample.neighbours):
        tail = one.values[len(history) - shown :]
        axes.plot(np.concatenate([past, future]), tail, lw=1.2, label=one.name,
                  color=NEIGHBOUR_COLOURS[number % len(NEIGHBOUR_COLOURS)])  # fmt: skip
    axes.plot(past, history[-shown:], color="black", lw=1.2)
    if example.truth is not None:
        axes.plot(future, example.truth[:, variate], color="black", ls=":")
    axes.axvline(0, color="0.7", lw=0.8)
    axes.set_xlabel("steps from the start of the forecast", fontsize=8)
    axes.tick_params(axis="x", labelsize=8)
    if not sample.neighbours:
        style.say(axes, "no history was near enough to be seen")
        return
    axes.set_title("retrieved, on the scale of the window (black)", fontsize=9, loc="left")
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.45 * (high - low))  # room for the legend
    axes.legend(fontsize=7, loc="upper left")
