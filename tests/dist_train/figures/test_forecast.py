"""dist_train/plots.py: readable pictures of any number of variates."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from dist_train.plots import ForecastExample, save_forecast_figure, save_run_figure
from matplotlib import pyplot
from matplotlib.figure import Figure

L, H = 60, 12
MSE_PER_STEP = {"Time-LLM": np.linspace(0.1, 0.5, H).tolist(), "ridge": [0.3] * H}


def example(variates: int, truth: bool = True) -> ForecastExample:
    rng = np.random.default_rng(0)
    return ForecastExample(
        dates=np.datetime64("2020-01-01", "ns") + np.arange(L + H) * np.timedelta64(1, "h"),
        history=rng.normal(size=(L, variates)),
        truth=rng.normal(size=(H, variates)) if truth else None,
        forecasts={name: rng.normal(size=(H, variates)) for name in ("Time-LLM", "ridge")},
        columns=[f"v{number} (MW)" for number in range(variates)],
    )


def test_a_png_is_written_and_nothing_beside_it(tmp_path: Path):
    save_forecast_figure(tmp_path / "forecast.png", example(2))
    save_run_figure(tmp_path / "run.png", example(2), MSE_PER_STEP)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["forecast.png", "run.png"]
    for path in tmp_path.iterdir():
        assert path.read_bytes().startswith(b"\x89PNG")
    assert pyplot.get_fignums() == []


@pytest.mark.parametrize(("variates", "panels"), [(1, 1), (3, 3), (4, 4), (7, 4)])
def test_every_variate_has_a_labelled_panel_four_at_most(
    tmp_path: Path, drawn: list[Figure], variates: int, panels: int
):
    save_forecast_figure(tmp_path / "f.png", example(variates))
    axes = drawn[0].axes
    assert [one.get_ylabel() for one in axes] == [f"v{number} (MW)" for number in range(panels)]
    note = f"{variates - panels} more variates not shown" if variates > panels else ""
    assert axes[-1].get_xlabel() == note


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


def test_history_truth_and_forecasts_stand_at_their_dates(tmp_path: Path, drawn: list[Figure]):
    shown = example(2)
    save_forecast_figure(tmp_path / "f.png", shown)
    assert shown.truth is not None
    future = shown.dates[L:]
    expected = {
        "history": (shown.dates[L - 3 * H : L], shown.history[-3 * H :, 1]),
        "truth": (future, shown.truth[:, 1]),
        "Time-LLM": (future, shown.forecasts["Time-LLM"][:, 1]),
        "ridge": (future, shown.forecasts["ridge"][:, 1]),
    }
    lines = {str(line.get_label()): line for line in drawn[0].axes[1].get_lines()}
    for name, (dates, values) in expected.items():
        np.testing.assert_array_equal(lines[name].get_xdata(), dates)
        np.testing.assert_array_equal(lines[name].get_ydata(), values)
    legend = drawn[0].axes[0].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == list(expected)


def test_the_future_is_drawn_without_a_truth(tmp_path: Path, drawn: list[Figure]):
    save_forecast_figure(tmp_path / "f.png", example(1, truth=False))
    labels = [line.get_label() for line in drawn[0].axes[0].get_lines()]
    assert "truth" not in labels
    assert {"history", "Time-LLM", "ridge"} <= set(labels)


def test_a_history_shorter_than_three_horizons_is_shown_whole(tmp_path: Path, drawn: list[Figure]):
    long = example(1)
    short = replace(long, history=long.history[-20:], dates=long.dates[L - 20 :])
    save_forecast_figure(tmp_path / "f.png", short)
    (history,) = (one for one in drawn[0].axes[0].get_lines() if one.get_label() == "history")
    assert len(history.get_xdata()) == 20
