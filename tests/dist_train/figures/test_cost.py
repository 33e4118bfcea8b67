"""dist_train/figures/cost.py: every part has its bar."""

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from dist_train.figures.cost import save_cost_figure
from dist_train.memory_account import PHASES
from tests.helpers.figures import overlapping_texts, texts_outside


def test_every_part_has_a_bar_with_its_number(tmp_path: Path, drawn: list[Figure]):
    seconds = {phase.doing: 10.0 * number for number, phase in enumerate(PHASES.values())}
    gib = {phase.part: 0.5 * number for number, phase in enumerate(PHASES.values(), 1)}
    save_cost_figure(tmp_path / "c.png", seconds, gib, "2 rank(s)\n5 trained parameters")
    times, memory = drawn[0].axes
    for axes, values in ((times, seconds), (memory, gib)):
        bars = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
        assert [bar.get_width() for bar in bars] == list(values.values())[::-1]
        assert [label.get_text() for label in axes.get_yticklabels()] == list(values)[::-1]
    told = [text.get_text() for text in times.texts]
    assert (told[0], told[-1]) == ("120 s", "0.00 s")
    assert times.get_title(loc="left") == "2 rank(s)\n5 trained parameters"
    assert overlapping_texts(drawn[0]) == []
    assert texts_outside(drawn[0]) == []


def test_a_run_that_measured_nothing_says_so(tmp_path: Path, drawn: list[Figure]):
    save_cost_figure(tmp_path / "c.png", {}, {}, "1 rank(s)")
    assert [text.get_text() for axes in drawn[0].axes for text in axes.texts] == [
        "nothing was measured"
    ] * 2
    save_cost_figure(tmp_path / "z.png", {"computing": 0.0}, {}, "1 rank(s)")
    assert drawn[1].axes[0].get_xlim()[1] > 0
