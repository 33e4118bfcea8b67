"""dist_train/figures/samples.py: forecasts beside what was retrieved for them."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from dist_train.figures.samples import ForecastSample, RetrievedHistory, save_sample_figure
from tests.dist_train.figures.test_forecast import H, L, example
from tests.helpers.figures import overlapping_texts


def sample(variates: int, variate: int, neighbours: int) -> ForecastSample:
    rng = np.random.default_rng(variate)
    return ForecastSample(
        example=example(variates),
        variate=variate,
        neighbours=[
            RetrievedHistory(name=f"2019-05-0{number + 1} 12:00, a variate", values=rng.normal(
                size=L + H))
            for number in range(neighbours)
        ],
    )  # fmt: skip


@pytest.mark.parametrize("count", [1, 3])
def test_without_a_memory_there_is_one_column(tmp_path: Path, drawn: list[Figure], count: int):
    save_sample_figure(tmp_path / "s.png", [sample(321, 100 * n, 0) for n in range(count)])
    assert [axes.get_ylabel() for axes in drawn[0].axes] == [
        f"v{100 * number} (MW)" for number in range(count)
    ]
    assert drawn[0].axes[0].get_title(loc="left") == "forecast from 2020-01-03 12:00"
    assert overlapping_texts(drawn[0]) == []


def test_neighbours_stand_beside_with_their_dates(tmp_path: Path, drawn: list[Figure]):
    shown = [sample(2, 1, 3), sample(2, 0, 0)]
    save_sample_figure(tmp_path / "s.png", shown)
    _, beside, _, empty = drawn[0].axes
    lines = {str(line.get_label()): line for line in beside.get_lines()}
    for one in shown[0].neighbours:
        np.testing.assert_array_equal(lines[one.name].get_ydata(), one.values[L - 3 * H :])
        assert list(lines[one.name].get_xdata())[-H:] == list(range(H))
    assert [text.get_text() for text in empty.texts] == ["no history was near enough to be seen"]
    assert overlapping_texts(drawn[0]) == []
