"""Picture of a window's patches: which prototype each attends to most, and how strongly.

Shape legend (this file):
    L  steps of history   P  patches   S  num_prototypes
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from memory_index.atomic_file import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

# Okabe and Ito 2008; the history is black.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
OTHER_COLOUR = "#BBBBBB"
MAX_PANELS = 2
PROTOTYPES_SHOWN = 10
WORDS_SHOWN = 3
LONGEST_WORD = 14


@dataclass(frozen=True, kw_only=True)
class PatchPanel:
    """One variate of one window."""

    variate: str
    """Its name, with the unit where the file gives it."""

    dates: np.ndarray
    """Time stamps of the history. Shape (L,), datetime64."""

    history: np.ndarray
    """In original units. Shape (L,)."""

    bounds: Sequence[tuple[int, int]]
    """First step and end of each patch."""

    attention: np.ndarray
    """Mean over the heads. Shape (P, S)."""


def save_inspect_figure(
    path: Path, title: str, panels: Sequence[PatchPanel], words: Sequence[Sequence[str]]
) -> None:
    """Draw the first variates: the history in the colours of its patches, and a heat map below.

    The heat map's rows are the coloured prototypes, then those with the most attention. A patch is
    drawn from its first step to that of the next one, also where patches overlap.

    Args:
        path: The picture; whole or absent.
        title: One line.
        panels: At least one; more than :data:`MAX_PANELS` are not drawn.
        words: Words of each prototype, the most telling first.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = panels[:MAX_PANELS]
    figure = pyplot.figure(figsize=(11, 5.2 * len(shown) + 0.4), layout="constrained")
    figure.suptitle(_drawable(title), fontsize=11, parse_math=False)
    parts = figure.subfigures(len(shown), 1, squeeze=False)[:, 0]
    labels = [_label(number, found) for number, found in enumerate(words)]
    colours = _choose_colours(shown)
    for part, panel in zip(parts, shown, strict=True):
        _draw(part, panel, labels, colours)
    with replacing(path) as beside:
        figure.savefig(beside, dpi=120, format="png")
    pyplot.close(figure)


def _choose_colours(panels: Sequence[PatchPanel]) -> dict[int, str]:
    """A colour for the prototypes that most patches attend to most, the same in all panels."""
    first = np.concatenate([panel.attention.argmax(axis=1) for panel in panels])
    numbers, counts = np.unique(first, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return dict(zip(numbers[order].tolist(), COLOURS, strict=False))


def _draw(
    part: "SubFigure | Figure",
    panel: PatchPanel,
    labels: Sequence[str],
    colours: Mapping[int, str],
) -> None:
    from matplotlib import dates

    above, below = part.subplots(2, 1, sharex=True, height_ratios=[1, 1.3])
    edges = dates.date2num(_edges(panel))  # type: ignore[no-untyped-call]
    _draw_history(above, panel, edges, labels, colours)
    _draw_heat_map(part, below, panel, edges, labels, colours)
    locator = dates.AutoDateLocator()  # type: ignore[no-untyped-call]
    below.xaxis.set_major_locator(locator)
    below.xaxis.set_major_formatter(dates.ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]
    below.set_xlim(edges[0], edges[-1])
    below.set_xlabel(f"time ({len(panel.bounds)} patches between the white lines)")


def _draw_history(
    axes: "Axes",
    panel: PatchPanel,
    edges: np.ndarray,
    labels: Sequence[str],
    colours: Mapping[int, str],
) -> None:
    from matplotlib.patches import Patch

    first = panel.attention.argmax(axis=1).tolist()
    for patch, number in enumerate(first):
        colour = colours.get(number, OTHER_COLOUR)
        axes.axvspan(edges[patch], edges[patch + 1], color=colour, alpha=0.45, lw=0)
    for edge in edges[1:-1]:
        axes.axvline(edge, color="white", lw=0.8)
    axes.plot(panel.dates, panel.history, color="black", lw=1.2)
    axes.set_ylabel(_drawable(panel.variate), parse_math=False)
    here = [(c, f"{labels[n]} ({first.count(n)})") for n, c in colours.items() if n in first]
    others = sum(number not in colours for number in first)
    if others:
        here.append((OTHER_COLOUR, f"others ({others})"))
    entries = [Patch(color=colour, alpha=0.45, label=label) for colour, label in here]
    legend = axes.legend(
        handles=entries, title="attended to most (patches)", alignment="left", fontsize=8,
        title_fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.02), borderaxespad=0,
        frameon=False,
    )  # fmt: skip
    for text in legend.get_texts():
        text.set_parse_math(False)


def _draw_heat_map(
    part: "SubFigure | Figure",
    axes: "Axes",
    panel: PatchPanel,
    edges: np.ndarray,
    labels: Sequence[str],
    colours: Mapping[int, str],
) -> None:
    mean_S = panel.attention.mean(axis=0)
    by_attention = np.argsort(-mean_S, kind="stable").tolist()
    coloured = [number for number in by_attention if number in colours]
    others = [number for number in by_attention if number not in colours]
    shown = [*coloured, *others][:PROTOTYPES_SHOWN]
    # In multiples of the uniform weight, from the least to the most: where all patches attend
    # alike, a scale from zero would show one colour.
    multiples = panel.attention[:, shown].T * len(mean_S)
    mesh = axes.pcolormesh(edges, np.arange(len(shown) + 1), multiples, cmap="cividis")
    axes.invert_yaxis()  # the first row on top
    axes.yaxis.tick_right()
    axes.set_yticks(np.arange(len(shown)) + 0.5)
    axes.set_yticklabels([labels[number] for number in shown], fontsize=8, parse_math=False)
    axes.tick_params(axis="y", length=0)
    axes.set_ylabel(f"{len(shown)} of {len(mean_S)} prototypes")
    bar = part.colorbar(mesh, ax=axes, location="bottom", aspect=50, pad=0.02)
    bar.set_label(
        f"attention, mean of the heads, in multiples of the uniform 1/{len(mean_S)}", fontsize=8
    )
    bar.ax.tick_params(labelsize=8)


def _edges(panel: PatchPanel) -> np.ndarray:
    """Time stamps between which the patches are drawn. Shape (P + 1,)."""
    step = panel.dates[-1] - panel.dates[-2] if len(panel.dates) > 1 else np.timedelta64(1, "h")
    begins = panel.dates[[begin for begin, _ in panel.bounds]]
    return np.append(begins, panel.dates[-1] + step)


def _label(number: int, words: Sequence[str]) -> str:
    short = [word if len(word) <= LONGEST_WORD else word[:LONGEST_WORD] + "..." for word in words]
    return _drawable(f"{number}: {'  '.join(short[:WORDS_SHOWN])}")


def _drawable(text: str) -> str:
    """Escape the characters that the font lacks, which would be drawn as boxes."""
    from matplotlib import font_manager

    font = font_manager.get_font(font_manager.findfont("DejaVu Sans"))
    return "".join(
        char if font.get_char_index(ord(char)) else char.encode("unicode_escape").decode("ascii")
        for char in text
    )
