"""What all figures share: colours that colour-blind readers tell apart, panels, saving."""

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memory_index.atomic_file import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes as Axes
    from matplotlib.figure import Figure as Figure

ANCHOR = "ridge + retrieval"
"""How every anchor is drawn that is more than the ridge, whatever it is called in full."""

# Okabe and Ito 2008, one colour per forecaster wherever it is drawn; black is what was observed.
BLUE, VERMILION, GREEN, PINK = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY, GREY = "#E69F00", "#56B4E9", "#999999"
COLOURS = {
    "Time-LLM": BLUE,
    "ridge": VERMILION,
    ANCHOR: GREEN,
    "DLinear": PINK,
    "seasonal naive": ORANGE,
    "repeat last": SKY,
}
CYCLE = (BLUE, VERMILION, GREEN, PINK, ORANGE, SKY, GREY)
DASHES = ("-", "--", ":", "-.")

PANEL_SIZE = 9.0, 2.6  # inches
DOTS_PER_INCH = 120
SCREEN_DOTS_PER_INCH = 90  # one of many in a dashboard
MAX_NAMED = 40
"""More variates than this are drawn in an order, without names."""

MAX_NAME = 24
"""Letters of a variate's name that fit beside an axis."""

LEGEND_LETTERS = 24
"""Letters of a legend's line: a longer one would take the width of the panels."""


def role(name: str) -> str:
    """The forecaster as which another one is drawn: a run has one anchor at most."""
    is_anchor = "ridge" in name and name not in ("ridge", "ridge of all")
    return ANCHOR if is_anchor else name


def colour(name: str) -> str:
    """Colour of a forecaster, grey where it has none of its own."""
    return COLOURS.get(role(name), GREY)


def forecaster(name: str) -> dict[str, Any]:
    """How the line of a forecaster is drawn: the model still shows where the ridge equals it."""
    if name == "Time-LLM":
        return {"color": colour(name), "lw": 2.4, "zorder": 2.5}
    if name == "ridge":
        return {"color": colour(name), "lw": 1.4, "ls": (0, (4, 3)), "zorder": 3}
    # Broad, for it often lies right under the model that starts from it.
    return {"color": colour(name), "lw": 5.0 if role(name) == ANCHOR else 1.5}


def line_style(number: int) -> tuple[str, str]:
    """Colour and dashes of the n-th of many lines: no two of the first 28 look alike."""
    return CYCLE[number % len(CYCLE)], DASHES[number // len(CYCLE) % len(DASHES)]


def shorten(name: str) -> str:
    """Cut a name to what fits beside an axis."""
    return name if len(name) <= MAX_NAME else name[: MAX_NAME - 3] + "..."


def height_of(names: Sequence[str]) -> float:
    """Usual heights that a panel needs with a row for each name, or for many without names."""
    if len(names) > MAX_NAMED:
        return 1.2
    return max(0.6, 0.3 + len(names) * 0.22 / PANEL_SIZE[1])


def name_rows(axes: "Axes", names: Sequence[str]) -> None:
    """Give a panel a row for each name, the first on top: row n is at ``len(names) - 1 - n``."""
    places = range(len(names))[::-1]
    axes.set_yticks(places, [shorten(name) for name in names], fontsize=8)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.grid(axis="y", lw=0.4)


def panels(
    count: int, *, columns: int = 1, heights: Sequence[float] | None = None
) -> "tuple[Figure, list[Axes]]":
    """Open a figure of panels below, and beside, each other; row by row.

    Args:
        count: Rows.
        columns: Panels of a row.
        heights: Of the rows, in usual heights; None: 1 each.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    heights = heights if heights is not None else [1.0] * count
    figure, grid = pyplot.subplots(
        count,
        columns,
        figsize=(PANEL_SIZE[0] + 4 * (columns - 1), PANEL_SIZE[1] * sum(heights)),
        height_ratios=heights,
        squeeze=False,
        layout="constrained",
    )
    return figure, list(grid.flatten())


def use_dates(axes: "Axes") -> None:
    """Let the x axis tell dates as briefly as can be understood."""
    from matplotlib import dates

    locator = dates.AutoDateLocator()  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_locator(locator)
    concise = dates.ConciseDateFormatter(locator)  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_formatter(concise)
    axes.tick_params(axis="x", labelsize=8)


def use_whole_numbers(axes: "Axes") -> None:
    """Put no mark of the x axis between two whole numbers."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def legend_beside(axes: "Axes") -> None:
    """Put the legend to the right of a panel, where it hides nothing; long names are folded."""
    handles, labels = axes.get_legend_handles_labels()
    folded = [textwrap.fill(label, LEGEND_LETTERS) for label in labels]
    axes.legend(handles, folded, fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))


def say(axes: "Axes", text: str) -> None:
    """Write why a panel is empty."""
    axes.set_yticks([])
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes, color="0.4")


def save(figure: "Figure", path: Path) -> None:
    """Write a figure as PNG, whole or not at all, and close it."""
    from matplotlib import pyplot

    try:
        with replacing(path) as beside:
            figure.savefig(beside, dpi=DOTS_PER_INCH, format="png")
    finally:
        pyplot.close(figure)


def to_png(figure: "Figure") -> bytes:
    """Make a PNG of a figure, for what is not a file, and close it."""
    from matplotlib import pyplot

    file = io.BytesIO()
    try:
        figure.savefig(file, dpi=SCREEN_DOTS_PER_INCH, format="png")
    finally:
        pyplot.close(figure)
    return file.getvalue()
