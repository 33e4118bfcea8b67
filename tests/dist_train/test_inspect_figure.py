"""dist_train/inspect_figure.py: the picture shows the attention that it was given."""

from pathlib import Path

import numpy as np
from matplotlib import colors, pyplot
from matplotlib.figure import Figure

from dist_train.inspect_figure import COLOURS, OTHER_COLOUR, PatchPanel, save_inspect_figure

L, P, S = 24, 6, 12
BOUNDS = [(0, 4), (2, 8), (6, 12), (10, 16), (14, 20), (18, 24)]
WORDS = [["\u2581the", "$x$", "\u4e16\u754c", "never shown"] for _ in range(S)]


def panel(first: list[int], name: str = "load (MW)") -> PatchPanel:
    """A variate whose patches attend to these prototypes most."""
    attention = np.full((P, S), 0.5 / S)
    attention[np.arange(P), first] += 0.5
    return PatchPanel(
        variate=name,
        dates=np.datetime64("2020-01-01", "ns") + np.arange(L) * np.timedelta64(1, "h"),
        history=np.arange(L) * 1.0,
        bounds=BOUNDS,
        attention=attention,
    )


def colours_of_patches(figure: Figure, axes_number: int) -> list[str]:
    spans = figure.axes[axes_number].patches
    return [colors.to_hex(span.get_facecolor()).upper() for span in spans]


def test_a_png_is_written_and_nothing_beside_it(tmp_path: Path):
    save_inspect_figure(tmp_path / "i.png", "run: $a_b", [panel([0, 0, 1, 1, 2, 2])], WORDS)
    assert [path.name for path in tmp_path.iterdir()] == ["i.png"]
    assert (tmp_path / "i.png").read_bytes().startswith(b"\x89PNG")
    assert pyplot.get_fignums() == []


def test_patches_stand_at_their_dates_in_the_colour_of_their_prototype(
    tmp_path: Path, drawn: list[Figure]
):
    save_inspect_figure(tmp_path / "i.png", "run", [panel([3, 3, 3, 7, 7, 1])], WORDS)
    assert colours_of_patches(drawn[0], 0) == [COLOURS[0]] * 3 + [COLOURS[1]] * 2 + [COLOURS[2]]
    history = drawn[0].axes[0]
    begins = [span.get_x() for span in history.patches]
    expected = pyplot.matplotlib.dates.date2num(panel([0] * P).dates)
    np.testing.assert_allclose(begins, expected[[begin for begin, _ in BOUNDS]])
    assert history.get_ylabel() == "load (MW)"
    legend = history.get_legend()
    assert legend is not None
    # The font knows no Chinese: its characters are escaped, not drawn as boxes.
    words = r"\u2581the  $x$  \u4e16\u754c".replace(r"\u2581", "\u2581")
    assert [text.get_text() for text in legend.get_texts()] == [
        f"3: {words} (3)", f"7: {words} (2)", f"1: {words} (1)",
    ]  # fmt: skip


def test_the_heat_map_shows_the_attention_of_the_coloured_and_the_most_attended(
    tmp_path: Path, drawn: list[Figure]
):
    given = panel([3, 3, 3, 7, 7, 1])
    given.attention[:, 9] += 0.1
    save_inspect_figure(tmp_path / "i.png", "run", [given], WORDS)
    heat = drawn[0].axes[1]
    rows = [int(label.get_text().split(":")[0]) for label in heat.get_yticklabels()]
    assert rows[:4] == [3, 7, 1, 9]
    assert len(rows) == 10
    values = np.asarray(heat.collections[0].get_array()).reshape(10, P)
    np.testing.assert_allclose(values, given.attention[:, rows].T * S)
    assert heat.get_ylabel() == "10 of 12 prototypes"
    assert "6 patches" in heat.get_xlabel()
    assert "multiples of the uniform 1/12" in drawn[0].axes[2].get_xlabel()


def test_a_prototype_has_one_colour_in_all_panels_and_two_panels_are_drawn(
    tmp_path: Path, drawn: list[Figure]
):
    panels = [panel([1, 1, 1, 1, 1, 5], "a"), panel([5, 5, 5, 5, 5, 5], "b"), panel([0] * 6, "c")]
    save_inspect_figure(tmp_path / "i.png", "run", panels, WORDS)
    labels = [axes.get_ylabel() for axes in drawn[0].axes]
    assert "a" in labels
    assert "b" in labels
    assert "c" not in labels
    assert colours_of_patches(drawn[0], labels.index("a"))[-1] == COLOURS[0]
    assert set(colours_of_patches(drawn[0], labels.index("b"))) == {COLOURS[0]}


def test_more_prototypes_than_colours_are_grey_together(tmp_path: Path, drawn: list[Figure]):
    first, second = panel([0, 1, 2, 3, 4, 5]), panel([0, 1, 2, 3, 8, 9])
    save_inspect_figure(tmp_path / "i.png", "run", [first, second], WORDS)
    grey = drawn[0].axes[3] if drawn[0].axes[3].patches else drawn[0].axes[2]
    number = drawn[0].axes.index(grey)
    assert colours_of_patches(drawn[0], number)[-2:] == [OTHER_COLOUR] * 2
    legend = grey.get_legend()
    assert legend is not None
    assert legend.get_texts()[-1].get_text() == "others (2)"


def test_attention_that_is_the_same_everywhere_is_drawn_too(tmp_path: Path):
    even = panel([0] * P)
    even.attention[:] = 1 / S
    save_inspect_figure(tmp_path / "i.png", "run", [even], WORDS)
    assert (tmp_path / "i.png").stat().st_size > 0
