"""Loss and its terms over the steps of a training, and the error on validation."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dist_train.figures import style

if TYPE_CHECKING:
    from dist_train.figures.style import Axes

PREFIX = "train/loss"


def save_loss_figure(path: Path, metrics: Path, *, best_step: int, ridge_val_mse: float) -> None:
    """Draw what a run has logged; a run without a step has its validation alone.

    Args:
        path: Of the picture.
        metrics: The run's ``metrics.jsonl``; lines that cannot be read are passed over.
        best_step: Marked on validation.
        ridge_val_mse: Drawn across validation.
    """
    lines = read_metrics(metrics)
    figure, (terms, validation) = style.panels(2, heights=[1.3, 1.0])
    _draw_terms(terms, lines)
    _draw_validation(validation, lines, best_step, ridge_val_mse)
    last = max([line["step"] for line in lines], default=0)
    for axes in (terms, validation):
        axes.set(xlabel="training step", xlim=(-0.03 * last - 0.5, 1.03 * last + 0.5))
        style.use_whole_numbers(axes)
    style.save(figure, path)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Lines of a ``metrics.jsonl`` in the order of their steps; none where there is no file."""
    try:
        texts = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    lines = []
    for text in texts:
        try:
            line = json.loads(text)
            if isinstance(line, dict) and isinstance(line.get("step"), int):
                lines.append(line)
        except (ValueError, RecursionError):  # cut off by whatever ended the run
            continue
    return sorted(lines, key=lambda line: int(line["step"]))


def _draw_terms(axes: "Axes", lines: Sequence[dict[str, Any]]) -> None:
    names = sorted({key for line in lines for key in line if key.startswith(PREFIX)})
    for number, name in enumerate(names):
        points = [(line["step"], line[name]) for line in lines if name in line]
        term = name.removeprefix(PREFIX).removeprefix("_").replace("_", " ")
        colour, dashes = ("black", "-") if name == PREFIX else style.line_style(number - 1)
        axes.plot(
            *zip(*points, strict=True), color=colour, ls=dashes, marker=".", ms=4,
            lw=2.0 if name == PREFIX else 1.2, label=term or "all, weighted",
        )  # fmt: skip
    axes.set_ylabel("training loss, each term\nbefore its weight")
    if not names:
        style.say(axes, "no step was logged: the run ends as it began")
        return
    style.legend_beside(axes)


def _draw_validation(
    axes: "Axes", lines: Sequence[dict[str, Any]], best_step: int, ridge_val_mse: float
) -> None:
    points = [(line["step"], line["val/mse"]) for line in lines if "val/mse" in line]
    axes.set_ylabel("validation MSE\n(standardised)")
    if not points:
        style.say(axes, "no validation was logged")
        return
    steps, values = zip(*points, strict=True)
    axes.plot(steps, values, color=style.BLUE, marker="o", label="Time-LLM")
    best = dict(points).get(best_step)
    if best is not None:
        axes.plot([best_step], [best], "*", color=style.ORANGE, ms=15, label="kept")
    axes.axhline(ridge_val_mse, color=style.VERMILION, ls="--", label="ridge")
    axes.margins(y=0.2)
    style.legend_beside(axes)
