"""dist_train/figures/style.py: what all figures share."""

from pathlib import Path

import pytest
from matplotlib import pyplot

from dist_train.figures import style


def test_forecasters_and_many_lines_can_be_told_apart():
    assert len(set(style.COLOURS.values())) == len(style.COLOURS)
    assert style.colour("something else") == style.GREY
    assert len({style.line_style(number) for number in range(28)}) == 28


def test_long_names_are_cut_and_short_ones_are_not():
    assert style.shorten("Demand") == "Demand"
    assert style.shorten("x" * 100) == "x" * (style.MAX_NAME - 3) + "..."


def test_panels_come_row_by_row():
    figure, panels = style.panels(2, columns=3, heights=[1, 2])
    assert len(panels) == 6
    assert panels[0].get_subplotspec().rowspan.start == 0  # type: ignore[union-attr]
    assert panels[3].get_subplotspec().rowspan.start == 1  # type: ignore[union-attr]
    pyplot.close(figure)


def test_a_figure_is_written_whole_and_closed(tmp_path: Path):
    figure, _ = style.panels(1)
    style.save(figure, tmp_path / "f.png")
    assert [path.name for path in tmp_path.iterdir()] == ["f.png"]
    assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")
    assert pyplot.get_fignums() == []


def test_a_figure_that_cannot_be_written_leaves_nothing_open(tmp_path: Path):
    figure, _ = style.panels(1)
    with pytest.raises(OSError, match="missing"):
        style.save(figure, tmp_path / "missing" / "f.png")
    assert pyplot.get_fignums() == []


@pytest.mark.parametrize(
    "name",
    [
        "ridge + retrieval",
        "ridge + year",
        "individual ridge",
        "individual ridge + day",
        "individual ridge + day + random features",
    ],
)
def test_an_anchor_is_drawn_as_one_whatever_its_name(name: str):
    assert style.colour(name) == style.GREEN
    # Broad, for the model that starts from it lies right over it.
    assert style.forecaster(name)["lw"] > style.forecaster("Time-LLM")["lw"]


@pytest.mark.parametrize("name", ["ridge of all", "DLinear"])
def test_other_forecasters_are_no_anchor(name: str):
    assert style.role(name) == name
    assert style.forecaster(name)["lw"] < style.forecaster("Time-LLM")["lw"]


def test_a_long_name_is_folded_in_a_legend():
    figure, panels = style.panels(1)
    for name in ("ridge", "individual ridge + retrieval + day + random features"):
        panels[0].plot([0, 1], label=name)
    style.legend_beside(panels[0])
    legend = panels[0].get_legend()
    assert legend is not None
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts == ["ridge", "individual ridge +\nretrieval + day + random\nfeatures"]
    pyplot.close(figure)
