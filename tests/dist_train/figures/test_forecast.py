"""dist_train/figures/forecast.py: readable pictures of any number of variates."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.figure import Figure

from dist_train.figures.forecast import ForecastExample, save_forecast_figure
from tests.helpers.figures import overlapping_texts

L, H = 60, 12


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
    assert [path.name for path in tmp_path.iterdir()] == ["forecast.png"]
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


def test_intervals_are_bands_around_the_forecast(tmp_path: Path, drawn: list[Figure]):
    shown = example(2)
    centre = shown.forecasts["Time-LLM"]
    bands = {80.0: (centre - 1, centre + 2), 95.0: (centre - 3, centre + 4)}
    save_forecast_figure(tmp_path / "f.png", replace(shown, intervals=bands))
    axes = drawn[0].axes[1]
    for band, (label, below, above) in zip(
        axes.collections, (("95 % interval", 3, 4), ("80 % interval", 1, 2)), strict=True
    ):
        assert band.get_label() == label
        edges = band.get_paths()[0].vertices[:, 1]  # type: ignore[index]
        assert edges.min() == pytest.approx((centre[:, 1] - below).min())
        assert edges.max() == pytest.approx((centre[:, 1] + above).max())


def test_the_model_still_shows_where_the_ridge_equals_it(tmp_path: Path, drawn: list[Figure]):
    save_forecast_figure(tmp_path / "f.png", example(1))
    lines = {str(line.get_label()): line for line in drawn[0].axes[0].get_lines()}
    assert lines["ridge"].get_zorder() > lines["Time-LLM"].get_zorder()
    assert (lines["ridge"].get_linestyle(), lines["Time-LLM"].get_linestyle()) == ("--", "-")


@pytest.mark.parametrize("step", ["1s", "1m", "10m", "30m", "1h", "1D", "7D", "31D"])
@pytest.mark.parametrize("steps", [2, 60, 700])
def test_dates_of_any_frequency_are_readable(
    tmp_path: Path, drawn: list[Figure], step: str, steps: int
):
    between = np.timedelta64(int(step[:-1]), step[-1])  # type: ignore[call-overload]
    shown = replace(
        example(1),
        dates=np.datetime64("2014-02-27T20:00", "ns") + np.arange(steps + H) * between,
        history=np.zeros((steps, 1)),
    )
    save_forecast_figure(tmp_path / "f.png", shown)
    assert overlapping_texts(drawn[0]) == []
