"""dist_train/figures/errors.py: one variate or hundreds, each is seen."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from dist_train.figures.errors import save_error_figure
from dist_train.figures.style import MAX_NAMED
from dist_train.metrics import Scores
from tests.helpers.figures import overlapping_texts, texts_outside


def scores(channels: int, seed: int, spread: float = 0.3) -> Scores:
    rng = np.random.default_rng(seed)
    errors = np.exp(spread * rng.normal(size=channels))
    return Scores(
        num_windows=10, mse=1.0, mae=1.0, rmse_original=1.0, mae_original=1.0, mase=1.0,
        mse_per_channel=tuple(errors), mse_per_step=tuple(rng.uniform(size=6)),
    )  # fmt: skip


def draw(path: Path, channels: int, spread: float = 0.3) -> dict[str, Scores]:
    rows = {
        name: scores(channels, number, spread)
        for number, name in enumerate(("Time-LLM", "ridge", "DLinear"))
    }
    names = tuple(f"variate {number} (a long unit of it)" for number in range(channels))
    save_error_figure(path, rows, names)
    return rows


@pytest.mark.parametrize("channels", [1, 2, 21, MAX_NAMED])
def test_each_variate_has_its_name_and_the_model_stands_beside_the_ridge(
    tmp_path: Path, drawn: list[Figure], channels: int
):
    rows = draw(tmp_path / "e.png", channels)
    axes = drawn[0].axes[1]
    assert len(axes.get_yticklabels()) == channels
    assert axes.get_yticklabels()[0].get_text() == "variate 0 (a long uni..."
    lines = {str(line.get_label()): line for line in axes.get_lines()}
    assert lines.keys() == {"Time-LLM", "ridge"}
    for name, line in lines.items():
        np.testing.assert_array_equal(line.get_xdata(), rows[name].mse_per_channel)
    first = axes.get_yticks()[0]
    assert first == lines["ridge"].get_ydata()[0]  # type: ignore[index]
    assert overlapping_texts(drawn[0]) == []
    assert texts_outside(drawn[0]) == []


def test_hundreds_of_variates_stand_in_the_order_of_the_ridge(tmp_path: Path, drawn: list[Figure]):
    rows = draw(tmp_path / "e.png", 321)
    axes = drawn[0].axes[1]
    lines = {str(line.get_label()): line.get_ydata() for line in axes.get_lines()}
    order = np.argsort(rows["ridge"].mse_per_channel)
    np.testing.assert_array_equal(lines["ridge"], np.sort(rows["ridge"].mse_per_channel))
    np.testing.assert_array_equal(
        lines["Time-LLM"], np.array(rows["Time-LLM"].mse_per_channel)[order]
    )
    assert "321 variates" in axes.get_xlabel()
    assert overlapping_texts(drawn[0]) == []


@pytest.mark.parametrize(("spread", "scale"), [(0.1, "linear"), (3.0, "log")])
def test_errors_far_apart_have_a_logarithmic_axis(
    tmp_path: Path, drawn: list[Figure], spread: float, scale: str
):
    draw(tmp_path / "e.png", 20, spread)
    assert drawn[0].axes[1].get_xscale() == scale


def test_a_variate_without_error_is_drawn_at_zero(tmp_path: Path, drawn: list[Figure]):
    flat = Scores(
        num_windows=1, mse=0, mae=0, rmse_original=0, mae_original=0, mase=0,
        mse_per_channel=(0.0, 0.0), mse_per_step=(0.0,),
    )  # fmt: skip
    save_error_figure(tmp_path / "e.png", {"Time-LLM": flat, "ridge": flat}, ("a", "b"))
    assert drawn[0].axes[1].get_xscale() == "linear"


@pytest.mark.parametrize("channels", [3, MAX_NAMED + 1])
def test_the_anchor_is_compared_whatever_its_name(
    tmp_path: Path, drawn: list[Figure], channels: int
):
    name = "individual ridge + retrieval + day"
    rows = {key: scores(channels, number, 0.3) for number, key in enumerate(("Time-LLM", name))}
    save_error_figure(tmp_path / "e.png", rows, tuple(f"v{n}" for n in range(channels)))
    assert {str(line.get_label()) for line in drawn[0].axes[1].get_lines()} == {"Time-LLM", name}
    assert overlapping_texts(drawn[0]) == []
    assert texts_outside(drawn[0]) == []
