"""What a run has cost: seconds by part, memory by part."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dist_train.figures import style

if TYPE_CHECKING:
    from dist_train.figures.style import Axes


def save_cost_figure(
    path: Path, seconds: Mapping[str, float], gib: Mapping[str, float], title: str
) -> None:
    """Draw seconds and memory of the main rank.

    Args:
        path: Of the picture.
        seconds: By part, in the order in which they are listed.
        gib: Memory that each part has added, in GiB; may be empty.
        title: Rate, parameters and ranks, in a line or two.
    """
    parts = [_height(len(seconds)), _height(len(gib))]
    figure, (times, memory) = style.panels(2, heights=parts)
    _draw_bars(times, seconds, "seconds of the main rank since its last start", style.BLUE, "s")
    _draw_bars(memory, gib, "memory that a part has added (GiB)", style.GREEN, "GiB")
    times.set_title(title, fontsize=9, loc="left")
    style.save(figure, path)


def _height(bars: int) -> float:
    return max(0.7, 0.35 + 0.11 * bars)


def _draw_bars(
    axes: "Axes", values: Mapping[str, float], label: str, colour: str, unit: str
) -> None:
    axes.set_xlabel(label)
    if not values:
        axes.set_yticks([])
        style.say(axes, "nothing was measured")
        return
    bars = axes.barh(list(values)[::-1], list(values.values())[::-1], color=colour)
    axes.bar_label(bars, [_told(v, unit) for v in list(values.values())[::-1]], padding=3,
                   fontsize=8)  # fmt: skip
    axes.set_xlim(0, 1.15 * max(values.values()) or 1.0)
    axes.tick_params(axis="y", labelsize=8)


def _told(value: float, unit: str) -> str:
    """A number with the digits that matter."""
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:,.{digits}f} {unit}"
