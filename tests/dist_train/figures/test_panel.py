"""dist_train/figures/panel.py: everything named is drawn, at its dates."""

import numpy as np
from matplotlib import pyplot
from matplotlib.dates import date2num
from matplotlib.figure import Figure

from dist_train.figures.panel import PanelWindow, draw

L, H = 60, 12
RNG = np.random.default_rng(0)


def window(title: str, neighbours: int | None = 3, *, interval: bool = False) -> PanelWindow:
    return PanelWindow(
        title=title,
        dates=np.datetime64("2020-01-01", "ns") + np.arange(L + H) * np.timedelta64(1, "h"),
        history=RNG.normal(size=L), truth=RNG.normal(size=H), forecast=RNG.normal(size=H),
        neighbours=None if neighbours is None else RNG.normal(size=(neighbours, H)),
        interval=(np.full(H, -1.0), np.full(H, 1.0)) if interval else None,
    )  # fmt: skip


def test_every_window_has_axes_with_history_truth_forecast_and_neighbours(drawn: list[Figure]):
    given = [window("a: v0"), window("b: v1")]
    assert draw(given).startswith(b"\x89PNG")
    axes = drawn[0].axes
    assert [one.get_title(loc="left") for one in axes] == ["a: v0", "b: v1"]
    for one, asked in zip(axes, given, strict=True):
        lines = {str(line.get_label()): line for line in one.get_lines()}
        assert {"history", "truth", "forecast", "retrieved futures"} <= lines.keys()
        np.testing.assert_allclose(lines["forecast"].get_ydata(), asked.forecast)
        np.testing.assert_allclose(date2num(lines["truth"].get_xdata()), date2num(asked.dates[L:]))
        # Three steps of history for each of the forecast, and the newest ones.
        np.testing.assert_allclose(lines["history"].get_ydata(), asked.history[-3 * H :])
        orange = [line for line in one.get_lines() if line.get_color() == "#E69F00"]
        assert len(orange) == 3
    texts = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert texts == ["history", "retrieved futures", "truth", "forecast"]


def test_an_interval_is_shaded_where_there_is_one_and_no_memory_has_no_neighbours(
    drawn: list[Figure],
):
    draw([window("a", None, interval=True)])
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == [
        "history", "interval", "truth", "forecast",
    ]  # fmt: skip


def test_no_neighbour_found_is_drawn_as_none(drawn: list[Figure]):
    draw([window("a", 0)])
    labels = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert "retrieved futures" not in labels


def test_no_figure_is_left_open():
    draw([window("a")])
    assert pyplot.get_fignums() == []
