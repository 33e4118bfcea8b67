"""The one picture of a run: a test window, and the error of every forecaster at each step."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dist_train.figures import style
from dist_train.figures.forecast import MAX_PANELS, ForecastExample, draw_example

if TYPE_CHECKING:
    from dist_train.figures.style import Axes


def save_run_figure(
    path: Path, example: ForecastExample, mse_per_step: Mapping[str, Sequence[float]]
) -> None:
    """Draw one test window, and below it the error of every forecaster at each step."""
    figure, panels = style.panels(min(example.history.shape[1], MAX_PANELS) + 1)
    draw_example(panels[:-1], example)
    draw_errors_per_step(panels[-1], mse_per_step)
    style.save(figure, path)


def draw_errors_per_step(axes: "Axes", mse_per_step: Mapping[str, Sequence[float]]) -> None:
    """Draw the error of forecasters at each step."""
    for name, values in mse_per_step.items():
        steps = np.arange(1, len(values) + 1)
        mark = "o" if len(values) == 1 else None
        axes.plot(steps, values, label=name, marker=mark, **style.forecaster(name))
    # Repeat-last may leave the picture: what is to be compared lies far below it.
    compared = [max(v) for name, v in mse_per_step.items() if name != "repeat last"]
    top = 1.15 * max(compared, default=1.0) or None
    axes.set(xlabel="forecast step", ylabel="test MSE (standardised)", ylim=(0, top))
    style.use_whole_numbers(axes)
    style.legend_beside(axes)
