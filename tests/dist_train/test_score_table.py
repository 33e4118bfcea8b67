"""dist_train/score_table.py: what is best stands out."""

import pytest

from dist_train.metrics import Scores
from dist_train.score_table import table, table_of_sources


def scores(mse: float) -> Scores:
    return Scores(
        num_windows=109, mse=mse, mae=0.11, rmse_original=1234.5678, mae_original=2.25, mase=0.75,
        mse_per_channel=(mse,), mse_per_step=(mse,),
    )  # fmt: skip


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_it_has_a_row_for_each_forecaster_and_marks_the_best():
    lines = table({"Time-LLM": scores(0.3), "ridge": scores(0.2), "naive": scores(0.4)})
    header, rule, *rows = map(cells, lines.splitlines())
    assert header[:3] == ["model", "MSE", "MAE"]
    assert [len(row) for row in (rule, *rows)] == [len(header)] * 4
    assert rows[0] == ["Time-LLM", "0.3000", "0.1100", "1235", "2.25", "0.750"]
    assert [row[:2] for row in rows[1:]] == [["ridge", "**0.2000**"], ["naive", "0.4000"]]


@pytest.mark.parametrize("name", ["Time-LLM", "ridge"])
def test_a_tie_marks_both(name: str):
    lines = table({"Time-LLM": scores(0.2), "ridge": scores(0.2)}).splitlines()
    (line,) = [one for one in lines if cells(one)[0] == name]
    assert cells(line)[1] == "**0.2000**"


def test_sources_stand_beside_each_other_with_their_mean():
    by_source = {
        "a": {"Time-LLM": scores(0.3), "ridge": scores(0.2)},
        "b": {"Time-LLM": scores(0.5), "ridge": scores(0.8)},
    }
    header, _, *rows = map(cells, table_of_sources(by_source).splitlines())
    assert header == ["MSE", "a", "b", "mean"]
    assert rows == [
        ["Time-LLM", "0.3000", "**0.5000**", "**0.4000**"],
        ["ridge", "**0.2000**", "0.8000", "0.5000"],
    ]
