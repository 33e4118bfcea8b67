"""dist_train/figures/losses.py: what was logged is what is drawn."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from dist_train.figures.losses import read_metrics, save_loss_figure
from tests.helpers.figures import overlapping_texts, texts_outside

TERMS = ("forecast", "direction", "magnitude", "hierarchy", "change", "gate_entropy",
         "gate_consistency", "one", "two", "three")  # fmt: skip


def write(path: Path, lines: list[dict[str, Any]], tail: str = "") -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + tail)
    return path


def training(steps: int) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = [{"step": 0, "val/mse": 0.5}]
    for step in range(10, steps + 1, 10):
        terms = {f"train/loss_{name}": 1.0 / step for name in TERMS}
        lines.append(
            {"step": step, "train/loss": 2.0 / step, "train/weight_forecast": 1.0, **terms}
        )
        lines.append({"step": step, "val/mse": 0.5 - step / 1000})
    return lines


def draw(folder: Path, metrics: Path, best_step: int = 0) -> None:
    save_loss_figure(folder / "l.png", metrics, best_step=best_step, ridge_val_mse=0.4)


def test_every_term_has_a_line_and_the_kept_step_a_mark(tmp_path: Path, drawn: list[Figure]):
    draw(tmp_path, write(tmp_path / "metrics.jsonl", training(50)), best_step=50)
    terms, validation = drawn[0].axes
    lines = {str(line.get_label()): line for line in terms.get_lines()}
    assert lines.keys() == {"all, weighted", *(name.replace("_", " ") for name in TERMS)}
    np.testing.assert_array_equal(lines["change"].get_xdata(), [10, 20, 30, 40, 50])
    np.testing.assert_array_equal(
        lines["all, weighted"].get_ydata(), [0.2, 0.1, 2 / 30, 0.05, 0.04]
    )
    styles = {(line.get_color(), line.get_linestyle()) for line in terms.get_lines()}
    assert len(styles) == len(lines)
    drawn_lines = {str(line.get_label()): line for line in validation.get_lines()}
    np.testing.assert_array_equal(drawn_lines["Time-LLM"].get_xdata(), [0, 10, 20, 30, 40, 50])
    assert list(drawn_lines["kept"].get_xdata()) == [50]
    assert list(drawn_lines["ridge"].get_ydata()) == [0.4, 0.4]
    assert overlapping_texts(drawn[0]) == []
    assert texts_outside(drawn[0]) == []
    assert terms.get_xlim() == validation.get_xlim()


@pytest.mark.parametrize("lines", [[], [{"step": 0, "val/mse": 0.5}]])
def test_a_run_without_a_step_says_so(
    tmp_path: Path, drawn: list[Figure], lines: list[dict[str, Any]]
):
    draw(tmp_path, write(tmp_path / "metrics.jsonl", lines))
    said = [text.get_text() for text in drawn[0].axes[0].texts]
    assert said == ["no step was logged: the run ends as it began"]
    assert [text.get_text() for text in drawn[0].axes[1].texts] == (
        [] if lines else ["no validation was logged"]
    )
    marks = [tick for tick in drawn[0].axes[1].get_xticks() if -0.5 <= tick <= 0.5]
    assert marks == [0]


def test_a_cut_line_is_passed_over_and_steps_are_in_order(tmp_path: Path):
    path = write(
        tmp_path / "m.jsonl", training(20)[::-1], tail='7\n{"step": "x"}\n{"step": 30, "va'
    )
    assert [line["step"] for line in read_metrics(path)] == [0, 10, 10, 20, 20]
    assert read_metrics(tmp_path / "missing") == []
