"""What intervals promise and what they cover: by level, by step, by variate."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dist_train.coverage import Coverage, told
from dist_train.figures import style

if TYPE_CHECKING:
    from dist_train.figures.style import Axes

TOLERANCE = 3.0
"""Points that coverage may be off and still be called right."""

COLOURS = (style.BLUE, style.VERMILION)
MARKS = ("o", "D")


def save_coverage_figure(
    path: Path, measured: Sequence[Coverage], names: tuple[str, ...], split: str = "test"
) -> None:
    """Draw measured coverage.

    Args:
        path: Of the picture.
        measured: By level, ascending.
        names: Of the channels.
        split: Where it was measured.
    """
    many = len(names) > style.MAX_NAMED
    heights = [1.4, 1.1, style.height_of(names)]
    figure, (levels, steps, variates) = style.panels(3, heights=heights)
    _draw_levels(levels, measured, split)
    for number, one in enumerate(told(measured)):
        kind: dict[str, Any] = {"color": COLOURS[number], "label": f"{one.level:g} % interval"}
        mark = "o" if len(one.per_step) == 1 else None
        places = np.arange(1, len(one.per_step) + 1)
        steps.plot(places, one.per_step, marker=mark, **kind)
        if many:
            order = np.arange(1, len(names) + 1)
            variates.plot(order, sorted(one.per_channel), ".", ms=4, **kind)
        else:
            variates.plot(one.per_channel, np.arange(len(names))[::-1], MARKS[number], **kind)
        for axes in (steps, variates):
            across = axes.axvline if axes is variates and not many else axes.axhline
            across(one.level, color=COLOURS[number], ls="--", lw=0.8)
    steps.set(xlabel="forecast step", ylabel=f"covered on {split} (%)")
    style.use_whole_numbers(steps)
    if many:
        variates.set(
            xlabel=f"the {len(names)} variates, in the order of their coverage",
            ylabel=f"covered on {split} (%)",
        )
        style.use_whole_numbers(variates)
    else:
        style.name_rows(variates, names)
        variates.set_xlabel(f"covered on {split} (%); dashed: the level")
    for axes in (steps, variates):
        style.legend_beside(axes)
    style.save(figure, path)


def _draw_levels(axes: "Axes", measured: Sequence[Coverage], split: str) -> None:
    line = np.array([0.0, 100.0])
    axes.fill_between(line, line - TOLERANCE, line + TOLERANCE, color="0.9", lw=0,
                      label=f"within {TOLERANCE:g} points")  # fmt: skip
    axes.plot(line, line, color="0.6", lw=0.8)
    axes.plot(
        [one.level for one in measured], [one.covered for one in measured], "o-",
        color=style.BLUE, label="Time-LLM",
    )  # fmt: skip
    axes.set(
        xlabel="level of the interval (%)", ylabel=f"covered on {split} (%)", xlim=(0, 100),
        ylim=(0, 103),
    )  # fmt: skip
    style.legend_beside(axes)
