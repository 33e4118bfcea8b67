"""dist_train/figures/coverage.py: promise and measurement beside each other."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from dist_train.coverage import Coverage
from dist_train.figures.coverage import save_coverage_figure
from tests.helpers.figures import overlapping_texts, texts_outside


def measured(channels: int, steps: int = 12) -> list[Coverage]:
    rng = np.random.default_rng(0)
    return [
        Coverage(
            level=level, covered=level - 2, width=1.0, interval_score=2.0,
            per_channel=tuple(level - 10 * rng.uniform(size=channels)),
            per_step=tuple(level - 5 * rng.uniform(size=steps)),
        )
        for level in (20.0, 80.0, 95.0)
    ]  # fmt: skip


def names(channels: int) -> tuple[str, ...]:
    return tuple(f"v{number} (W/m2)" for number in range(channels))


@pytest.mark.parametrize("channels", [1, 2, 21])
def test_levels_steps_and_variates_are_what_was_measured(
    tmp_path: Path, drawn: list[Figure], channels: int
):
    rows = measured(channels)
    save_coverage_figure(tmp_path / "c.png", rows, names(channels))
    levels, steps, variates = drawn[0].axes
    points = next(line for line in levels.get_lines() if line.get_label() == "Time-LLM")
    assert list(points.get_xdata()) == [20, 80, 95]
    assert list(points.get_ydata()) == [18, 78, 93]
    for axes, attribute, axis in ((steps, "per_step", "y"), (variates, "per_channel", "x")):
        lines = {str(line.get_label()): line for line in axes.get_lines()}
        for one in rows[1:]:
            line = lines[f"{one.level:g} % interval"]
            values = line.get_ydata() if axis == "y" else line.get_xdata()
            np.testing.assert_array_equal(values, getattr(one, attribute))
    assert [label.get_text() for label in variates.get_yticklabels()] == list(names(channels))
    assert overlapping_texts(drawn[0]) == []
    assert texts_outside(drawn[0]) == []


def test_hundreds_of_variates_and_one_step(tmp_path: Path, drawn: list[Figure]):
    rows = measured(321, steps=1)
    save_coverage_figure(tmp_path / "c.png", rows, names(321), "val")
    _, steps, variates = drawn[0].axes
    assert "321 variates" in variates.get_xlabel()
    assert steps.get_ylabel() == "covered on val (%)"
    line = next(one for one in variates.get_lines() if one.get_label() == "95 % interval")
    np.testing.assert_array_equal(line.get_ydata(), sorted(rows[2].per_channel))
    assert overlapping_texts(drawn[0]) == []
