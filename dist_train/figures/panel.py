"""The picture of a few windows: history, truth, forecast, and the futures that were retrieved.

Shape legend (this file):
    L  steps of history   H  pred_len   K  retrieved futures
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dist_train.figures import style
from dist_train.figures.forecast import HISTORY_PER_HORIZON

if TYPE_CHECKING:
    from dist_train.figures.style import Axes

FORECAST, NEIGHBOUR = style.BLUE, style.ORANGE


@dataclass(frozen=True, kw_only=True)
class PanelWindow:
    """One variate of one window, in original units."""

    title: str
    dates: np.ndarray
    """Time stamps of history and horizon. Shape (L + H,), datetime64."""

    history: np.ndarray
    """Shape (L,)."""

    truth: np.ndarray
    """Shape (H,)."""

    forecast: np.ndarray
    """Shape (H,)."""

    neighbours: np.ndarray | None
    """Retrieved futures on this window's level and scale, nearest first. (K, H); None: off."""

    interval: tuple[np.ndarray, np.ndarray] | None = None
    """Lower and upper bound of the forecast, where they are calibrated. Shape (H,) each."""


def draw(windows: Sequence[PanelWindow]) -> bytes:
    """Draw the windows below each other, as a PNG."""
    figure, panels = style.panels(len(windows))
    for axes, window in zip(panels, windows, strict=True):
        _draw_window(axes, window)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, ncols=5, loc="outside upper center")
    return style.to_png(figure)


def _draw_window(axes: "Axes", window: PanelWindow) -> None:
    length = len(window.history)
    shown = min(length, HISTORY_PER_HORIZON * len(window.forecast))
    past, future = window.dates[length - shown : length], window.dates[length:]
    axes.plot(past, window.history[-shown:], color="black", lw=1, label="history")
    for number, values in enumerate(window.neighbours if window.neighbours is not None else ()):
        label = "retrieved futures" if number == 0 else None
        axes.plot(future, values, color=NEIGHBOUR, lw=0.9, alpha=0.7, label=label)
    if window.interval is not None:
        axes.fill_between(
            future, *window.interval, color=FORECAST, alpha=0.2, lw=0, label="interval"
        )
    axes.plot(future, window.truth, color="black", ls=":", lw=1.4, label="truth")
    axes.plot(future, window.forecast, color=FORECAST, lw=1.6, label="forecast")
    axes.axvline(future[0], color="0.7", lw=0.8)
    axes.set_title(window.title, fontsize=9, loc="left")
    style.use_dates(axes)
    axes.tick_params(labelsize=8)
