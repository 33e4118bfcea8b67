"""dist_train/ablation/table.py: both tables say what the rows are, and no more."""

import csv
import io
from pathlib import Path

import numpy as np
import pytest

from dist_train.ablation.cells import Plan
from dist_train.ablation.grid import Row
from dist_train.ablation.running import write_failure
from dist_train.ablation.table import CSV_COLUMNS, make_table, to_csv, to_markdown
from dist_train.config import ConfigError
from tests.dist_train.ablation.ablations import ROWS, base_run, finish, plan_of


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    rows = [*ROWS, Row(name="third", keys=("--tapr.n_scales=4",))]  # reads nothing: the first's run
    return plan_of(base_run(tmp_path), rows, baselines=[("ridge", "repeat_last")])


def fill(plan: Plan, other: tuple[float, float, float] = (0.44, 0.47, 0.50)) -> None:
    for cell, mse in zip(plan.trainings, (0.50, 0.52, 0.57, *other), strict=True):
        finish(cell, mse, val_mse=1 - mse)
    finish(plan.baselines[0].cells[0], 0.45)


def markdown_row(text: str, name: str) -> list[str]:
    (line,) = [
        line for line in text.splitlines() if line.startswith(f"| {name} |") and "`" not in line
    ]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_markdown_row_has_every_number(plan: Plan):
    fill(plan)
    text = to_markdown(make_table(plan))
    row = markdown_row(text, "other")
    assert row[:6] == [
        "other", "3", "0.4700 +- 0.0300", "0.2350 +- 0.0150", "0.5300", "-0.0600",
    ]  # fmt: skip
    assert row[6] == "0.009"
    assert row[8:] == ["yes", "2.0", "0.50", "1,234", "7.0"]
    assert markdown_row(text, "first")[5:9] == ["", "", "", ""]
    ridge = markdown_row(text, "ridge")
    assert (ridge[1], ridge[2], ridge[5]) == ("none needed", "0.4500", "-0.0800")
    assert len({len(markdown_row(text, name)) for name in ("first", "other", "ridge")}) == 1


def test_validation_chooses_also_against_the_test(plan: Plan):
    fill(plan)
    table = make_table(plan)
    assert table.best is not None
    assert table.best.name == "first"  # worse on test
    assert "Validation prefers **first** (MSE 0.4700)" in to_markdown(table)


def test_one_run_for_two_rows_is_told(plan: Plan):
    fill(plan)
    text = to_markdown(make_table(plan))
    assert "One run serves first and third: nothing reads what tells them apart." in text
    assert markdown_row(text, "third")[5:9] == ["+0.0000", "1.000", "1.000", "no"]


def test_failures_and_what_has_not_run_are_in_the_row(plan: Plan):
    finish(plan.trainings[0], 0.5)
    write_failure(plan.trainings[3], 71, "out of memory: lower train.micro_batch_size")
    table = make_table(plan)
    text = to_markdown(table)
    assert markdown_row(text, "other")[:3] == ["other", "0, 1 failed, 2 not run", ""]
    assert markdown_row(text, "first")[1] == "1, 2 not run"
    assert "* **other**, seed 2021, failed: out of memory: lower train.micro_batch_size" in text
    assert (table.num_failed, table.best) == (1, None)


def test_a_training_that_never_improved_and_other_code_are_told(plan: Plan):
    for number, cell in enumerate(plan.trainings):
        finish(cell, 0.5, best_step=0 if number < 3 else 10, code=f"c{number // 3}")
    text = to_markdown(make_table(plan))
    assert "better on validation than its start: first, third; what is scored" in text
    assert "not all trained by the same version of the code" in text


def test_the_csv_has_the_same_numbers_at_full_length(plan: Plan):
    fill(plan)
    rows = list(csv.DictReader(io.StringIO(to_csv(make_table(plan)))))
    assert list(rows[0]) == list(CSV_COLUMNS)
    assert [row["row"] for row in rows] == ["first", "other", "third", "ridge", "repeat last"]
    other = rows[1]
    assert float(other["mse_mean"]) == pytest.approx(0.47)
    assert float(other["mse_std"]) == pytest.approx(np.std([0.44, 0.47, 0.50], ddof=1))
    assert other["beyond_seed_noise"] == "True"
    assert other["mse_by_seed"] == "2021:0.44 2022:0.47 2023:0.5"
    assert other["best_step_by_seed"] == "2021:10 2022:10 2023:10"
    assert (rows[3]["kind"], rows[3]["mse_std"], rows[3]["windows_per_s"]) == ("baseline", "", "")


def test_a_row_without_a_result_has_as_many_cells_as_others(plan: Plan):
    finish(plan.trainings[0], 0.5)
    lines = list(csv.reader(io.StringIO(to_csv(make_table(plan)))))
    assert {len(line) for line in lines} == {len(CSV_COLUMNS)}


def test_baselines_of_another_version_of_the_data_are_refused(plan: Plan):
    for cell in plan.trainings:
        finish(cell, 0.5, data="new")
    finish(plan.baselines[0].cells[0], 0.45, data="old")
    baseline = plan.baselines[0].cells[0].folder.parent.name
    with pytest.raises(
        ConfigError, match=rf"than {baseline}; restore .* that is gone, baselines too"
    ):
        make_table(plan)


def of_horizons(folder: Path, *steps: int) -> Plan:
    """Plan a grid whose rows forecast so many steps, the configuration the first."""
    rows = [Row(name=f"h{n}_{number}", keys=(f"--data.pred_len={n}", f"--train.max_steps={number}"))
            for number, n in enumerate(steps, start=1)]  # fmt: skip
    more = [f"--data.pred_len={steps[0]}"]
    return plan_of(base_run(folder), rows, seeds=2, more=more, baselines=[("ridge",)])


def test_a_row_of_another_horizon_is_told_and_not_judged(tmp_path: Path):
    plan = of_horizons(tmp_path, 12, 8, 12)
    for number, cell in enumerate(plan.trainings):
        finish(cell, 0.5 + number / 100, val_mse=(0.4, 0.4, 0.1, 0.1, 0.3, 0.3)[number])
    finish(plan.baselines[0].cells[0], 0.45)
    table = make_table(plan)
    text = to_markdown(table)
    assert markdown_row(text, "h8_2")[5:9] == ["", "", "", ""]
    assert markdown_row(text, "h12_3")[5] == "+0.0400"
    assert "* **h8_2** is not compared with `h12_1`: it forecasts 8 steps, not 12." in text
    assert "**h12_3** is not compared" not in text
    assert "2 comparisons" in text  # a row and the baseline
    assert table.best is not None
    assert table.best.name == "h12_3"
    rows = {row["row"]: row for row in csv.DictReader(io.StringIO(to_csv(table)))}
    assert [rows["h8_2"][key] for key in ("difference", "p_seeds", "p_windows")] == ["", "", ""]


def test_validation_prefers_nothing_where_no_two_rows_can_be_compared(tmp_path: Path):
    plan = of_horizons(tmp_path, 12, 8, 5)
    for cell in plan.trainings[2:4]:
        finish(cell, 0.5)
    table = make_table(plan)
    assert table.best is not None  # nothing else is there
    assert table.best.name == "h8_2"
    for cell in plan.trainings[4:]:
        finish(cell, 0.6)
    table = make_table(plan)  # still without the first row
    text = to_markdown(table)
    assert table.best is None
    assert "Validation prefers" not in text
    assert "**h5_3** is not compared with `h8_2`: it forecasts 5 steps, not 8." in text
