"""dist_train/ablation/figure.py: a dot for each seed where its number is, and room for all."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure

from dist_train.ablation.cells import Plan
from dist_train.ablation.figure import APART, FIRST, save_ablation_figure
from dist_train.ablation.table import make_table
from tests.dist_train.ablation.ablations import base_run, finish, plan_of

SEEDS = [0.50, 0.52, 0.57, 0.44, 0.47, 0.50]


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    groups = [("ridge",), ("repeat_last",)]
    return plan_of(base_run(tmp_path), baselines=groups)


def test_a_png_is_written_and_nothing_beside_it(plan: Plan, tmp_path: Path):
    for cell, mse in zip(plan.trainings, SEEDS, strict=True):
        finish(cell, mse)
    folder = tmp_path / "out"
    folder.mkdir()
    assert save_ablation_figure(folder / "a.png", make_table(plan))
    assert [path.name for path in folder.iterdir()] == ["a.png"]
    assert (folder / "a.png").read_bytes().startswith(b"\x89PNG")
    assert pyplot.get_fignums() == []


def test_dots_stand_at_their_numbers_and_what_is_far_is_told(
    plan: Plan, tmp_path: Path, drawn: list[Figure]
):
    for cell, mse in zip(plan.trainings, SEEDS, strict=True):
        finish(cell, mse)
    finish(plan.baselines[0].cells[0], 0.30)  # the ridge is drawn wherever it is
    finish(plan.baselines[1].cells[0], 5.0)
    save_ablation_figure(tmp_path / "a.png", make_table(plan))
    (axes,) = drawn[0].axes
    dots = [
        np.asarray(each.get_offsets())
        for each in axes.collections
        if isinstance(each, PathCollection)
    ]
    np.testing.assert_allclose(dots[0], [[mse, 0] for mse in SEEDS[:3]])
    np.testing.assert_allclose(dots[1], [[mse, 1] for mse in SEEDS[3:]])
    np.testing.assert_allclose(dots[2], [[0.30, 2]])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["first", "other", "ridge"]
    low, high = axes.get_xlim()
    assert low < 0.30
    assert 0.57 < high < 1
    assert [text.get_text() for text in drawn[0].texts] == ["outside: repeat last 5.000"]
    means = [text.get_text() for text in axes.texts]
    assert means == ["0.5300", "0.4700", "0.3000"]


def test_without_a_result_there_is_no_picture(plan: Plan, tmp_path: Path):
    assert not save_ablation_figure(tmp_path / "a.png", make_table(plan))
    assert not (tmp_path / "a.png").exists()


def test_a_row_that_is_not_compared_says_so(plan: Plan, tmp_path: Path, drawn: list[Figure]):
    for number, cell in enumerate(plan.trainings):
        finish(cell, SEEDS[number], num_windows=10 if number < 3 else 11)
    save_ablation_figure(tmp_path / "a.png", make_table(plan))
    (axes,) = drawn[0].axes
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["first", "other (not compared)"]
    assert [text.get_color() for text in axes.texts] == [FIRST, APART]
