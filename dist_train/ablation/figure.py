"""The picture of an ablation: a dot for every seed, the mean of each row and its spread."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dist_train.ablation.results import RowResult, unlike
from dist_train.ablation.table import Table
from dist_train.figures import style

if TYPE_CHECKING:
    from dist_train.figures.style import Axes

FIRST, ROW, BASELINE, APART = "#000000", style.BLUE, style.VERMILION, "#888888"
FURTHEST = 0.6
"""A baseline further from the rows than this many times their whole width leaves the picture."""


def save_ablation_figure(path: Path, table: Table) -> bool:
    """Draw the rows that have finished; false where there is none.

    Args:
        path: The picture; whole or absent.
        table: What to draw.
    """
    rows = [row for row in table.rows if row.measured]
    if not rows:
        return False
    baselines, left_out = shown_baselines(rows, [row for row in table.baselines if row.measured])
    drawn = [*rows, *baselines]
    figure, (axes,) = style.panels(1, heights=[(1.4 + 0.42 * len(drawn)) / style.PANEL_SIZE[1]])
    apart = [row for row in drawn if unlike(row, table.reference) is not None]
    for place, row in enumerate(drawn):
        colour = BASELINE if row in baselines else FIRST if row is table.rows[0] else ROW
        _draw_row(axes, place, row, APART if row in apart else colour)
    if table.rows[0].measured:
        axes.axvline(table.rows[0].mse[0], color=FIRST, lw=0.8, ls=":", zorder=0)
    labels = [_label(row) + (" (not compared)" if row in apart else "") for row in drawn]
    axes.set_yticks(range(len(drawn)), labels)
    axes.set_ylim(len(drawn) - 0.4, -0.6)
    # The numbers stand right of the dots, and need room there.
    axes.margins(x=0.18)
    axes.grid(axis="x", color="0.9", zorder=-1)
    axes.set_axisbelow(True)
    axes.set_xlabel("test MSE (standardised): dots are seeds, bars mean and standard deviation")
    plan = table.plan
    data = plan.base.data
    name = Path(data.path).stem if data.path else data.label
    title = f"{plan.grid.name}: {name}, {data.seq_len} -> {data.told_horizon}"
    axes.set_title(title, fontsize=10, loc="left")
    if left_out:
        told = ", ".join(f"{row.name} {row.mse[0]:.3f}" for row in left_out)
        figure.supxlabel(f"outside: {told}", fontsize=7, x=0.99, ha="right")
    style.save(figure, path)
    return True


def shown_baselines(
    rows: Sequence[RowResult], baselines: Sequence[RowResult]
) -> tuple[list[RowResult], list[RowResult]]:
    """Part the baselines into those near enough to be drawn, and those that would squeeze all."""
    values = [one.test_mse for row in rows for one in row.measured]
    near = [row for row in baselines if row.name.startswith("ridge")]  # what must be beaten
    values += [row.mse[0] for row in near]
    low, high = min(values), max(values)
    reach = FURTHEST * max(high - low, 0.02 * high)
    shown = [row for row in baselines if row in near or low - reach <= row.mse[0] <= high + reach]
    return shown, [row for row in baselines if row not in shown]


def _draw_row(axes: "Axes", place: int, row: RowResult, colour: str) -> None:
    mean, spread = row.mse
    seeds = [one.test_mse for one in row.measured]
    axes.scatter(seeds, [place] * len(seeds), s=20, color=colour, alpha=0.6, linewidths=0, zorder=3)
    marker = "D" if row.deterministic else "|"
    axes.errorbar(
        mean, place, xerr=spread, color=colour, marker=marker, ms=5 if row.deterministic else 12,
        mew=2 if marker == "|" else 1, capsize=3, lw=1.4,
    )  # fmt: skip
    axes.annotate(
        f"{mean:.4f}", (max([mean + (spread or 0), *seeds]), place), xytext=(8, 0),
        textcoords="offset points", va="center", fontsize=8, color=colour,
    )  # fmt: skip


def _label(row: RowResult) -> str:
    return row.name if row.deterministic or len(row.measured) > 1 else f"{row.name} (1 seed)"
