"""dist_train/figures/run.py: a window, and the error at each step."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from dist_train.figures.run import save_run_figure
from tests.dist_train.figures.test_forecast import H, example
from tests.helpers.figures import overlapping_texts

MSE_PER_STEP = {"Time-LLM": np.linspace(0.1, 0.5, H).tolist(), "ridge": [0.3] * H}


def test_a_run_also_shows_the_error_of_every_forecaster_at_each_step(
    tmp_path: Path, drawn: list[Figure]
):
    save_run_figure(tmp_path / "r.png", example(6), MSE_PER_STEP)
    *variates, errors = drawn[0].axes
    assert len(variates) == 4
    assert (errors.get_xlabel(), errors.get_ylabel()) == (
        "forecast step", "test MSE (standardised)",
    )  # fmt: skip
    lines = {line.get_label(): line for line in errors.get_lines()}
    assert lines.keys() == MSE_PER_STEP.keys()
    for name, values in MSE_PER_STEP.items():
        np.testing.assert_array_equal(lines[name].get_xdata(), np.arange(1, H + 1))
        np.testing.assert_array_equal(lines[name].get_ydata(), values)
    assert errors.get_ylim()[0] == 0
    assert overlapping_texts(drawn[0]) == []


def test_what_repeats_the_last_value_may_leave_the_picture(tmp_path: Path, drawn: list[Figure]):
    far = MSE_PER_STEP | {"repeat last": [50.0] * H}
    save_run_figure(tmp_path / "r.png", example(1), far)
    assert drawn[0].axes[-1].get_ylim()[1] < 1
    only = {"repeat last": [50.0] * H}
    save_run_figure(tmp_path / "o.png", example(1), only)
    assert drawn[1].axes[-1].get_ylim()[1] > 0


def test_a_horizon_of_one_step_is_a_mark(tmp_path: Path, drawn: list[Figure]):
    save_run_figure(tmp_path / "r.png", example(1), {"Time-LLM": [0.1], "ridge": [0.2]})
    assert {line.get_marker() for line in drawn[0].axes[-1].get_lines()} == {"o"}
