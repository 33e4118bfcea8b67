"""The error at each forecast step and of each variate, the model beside the ridge."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dist_train.figures import style
from dist_train.figures.run import draw_errors_per_step
from dist_train.metrics import Scores

if TYPE_CHECKING:
    from dist_train.figures.style import Axes

MARKS = {"Time-LLM": "o", "ridge": "D", style.ANCHOR: "s"}


def save_error_figure(path: Path, scores: Mapping[str, Scores], names: tuple[str, ...]) -> None:
    """Draw errors per step and per variate.

    Args:
        path: Of the picture.
        scores: By forecaster, the model first.
        names: Of the channels.
    """
    figure, (steps, variates) = style.panels(2, heights=[1.2, style.height_of(names)])
    draw_errors_per_step(steps, {name: row.mse_per_step for name, row in scores.items()})
    compared = {name: row for name, row in scores.items() if style.role(name) in MARKS}
    if len(names) > style.MAX_NAMED:
        _draw_ordered(variates, compared)
    else:
        _draw_named(variates, compared, names)
    style.save(figure, path)


def _draw_named(axes: "Axes", scores: Mapping[str, Scores], names: tuple[str, ...]) -> None:
    places = np.arange(len(names))[::-1]
    for name, row in list(scores.items())[::-1]:
        axes.plot(row.mse_per_channel, places, MARKS[style.role(name)], color=style.colour(name),
                  label=name, ms=6, alpha=0.85)  # fmt: skip
    style.name_rows(axes, names)
    axes.set_xlabel("test MSE (standardised)")
    _spread(axes, scores, "x")
    style.legend_beside(axes)


def _draw_ordered(axes: "Axes", scores: Mapping[str, Scores]) -> None:
    reference = scores.get("ridge", next(iter(scores.values())))
    order = np.argsort(reference.mse_per_channel)
    for name, row in list(scores.items())[::-1]:
        values = np.asarray(row.mse_per_channel)[order]
        axes.plot(np.arange(1, len(order) + 1), values, ".", color=style.colour(name), label=name,
                  ms=4)  # fmt: skip
    axes.set(
        xlabel=f"the {len(order)} variates, in the order of the ridge's error",
        ylabel="test MSE (standardised)",
    )
    _spread(axes, scores, "y")
    style.use_whole_numbers(axes)
    style.legend_beside(axes)


def _spread(axes: "Axes", scores: Mapping[str, Scores], axis: str) -> None:
    """Choose a logarithmic axis where errors of variates differ by far."""
    values = np.concatenate([row.mse_per_channel for row in scores.values()])
    positive = values[values > 0]
    if len(positive) == len(values) and positive.max() > 30 * positive.min():
        axes.set(**{f"{axis}scale": "log"})
    else:
        axes.set(**{f"{axis}lim": (0, 1.1 * values.max() or 1.0)})
