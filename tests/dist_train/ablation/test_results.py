"""dist_train/ablation/results.py: what is read is what was written, and pairs are pairs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats

from dist_train.ablation.cells import Plan
from dist_train.ablation.grid import Row
from dist_train.ablation.results import (
    check_one_data,
    compare,
    is_finished,
    read_baselines,
    read_rows,
    unlike,
)
from dist_train.ablation.running import write_failure
from dist_train.ablation.table import make_table, to_markdown
from dist_train.config import ConfigError
from dist_train.data.config import DataConfig, SourceConfig
from tests.dist_train.ablation.ablations import WINDOWS, base_run, finish, plan_of

FIRST, OTHER = [0.50, 0.52, 0.57], [0.44, 0.47, 0.50]


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return plan_of(base_run(tmp_path), baselines=[("ridge", "repeat_last"), ("dlinear",)])


def test_rows_hold_mean_and_spread_over_seeds(plan: Plan):
    for cell, mse in zip(plan.trainings, FIRST + OTHER, strict=True):
        finish(cell, mse)
    first, other = read_rows(plan)
    assert first.mse == (pytest.approx(np.mean(FIRST)), pytest.approx(np.std(FIRST, ddof=1)))
    assert other.mae[0] == pytest.approx(np.mean(OTHER) / 2)
    assert [one.seed for one in other.measured] == [2021, 2022, 2023]
    assert (other.measured[0].peak_gib, other.measured[0].trained_parameters) == (0.5, 1234)
    difference = compare(other, first)
    assert difference is not None
    expected = scipy.stats.ttest_rel(OTHER, FIRST).pvalue
    assert difference.mse == pytest.approx(np.mean(OTHER) - np.mean(FIRST))
    assert difference.p_seeds == pytest.approx(float(expected))
    assert difference.beyond_seed_noise is True


def test_only_seeds_that_both_have_are_paired(plan: Plan):
    for number, mse in ((0, 0.5), (1, 0.6), (4, 0.7), (5, 0.8)):
        finish(plan.trainings[number], mse)
    first, other = read_rows(plan)
    assert (first.missing, other.missing) == ((2023,), (2021,))
    difference = compare(other, first)
    assert difference is not None
    assert (difference.seeds, difference.p_seeds) == (1, None)
    assert difference.mse == pytest.approx(0.1)  # seed 2022 alone
    assert difference.beyond_seed_noise is None


def test_a_row_without_seeds_stands_beside_each_seed(plan: Plan):
    for cell, mse in zip(plan.trainings[:3], FIRST, strict=True):
        finish(cell, mse)
    finish(plan.baselines[0].cells[0], 0.4)
    ridge = read_baselines(plan)[0]
    assert (ridge.name, ridge.deterministic, ridge.mse[1]) == ("ridge", True, None)
    difference = compare(ridge, read_rows(plan)[0])
    assert difference is not None
    expected = scipy.stats.ttest_1samp(np.array(FIRST) - 0.4, 0).pvalue
    assert difference.p_seeds == pytest.approx(float(expected))
    assert difference.seeds == 3


def test_windows_are_paired_by_the_time_they_forecast(plan: Plan):
    noise = np.random.default_rng(0).normal(size=WINDOWS)
    for cell in plan.trainings:
        is_other = cell.config.tapr.use_tapr
        own = np.random.default_rng(is_other).normal(size=WINDOWS)
        # The same hard windows for both: only a paired test sees so small a difference.
        finish(cell, 0.5, errors=5 + 3 * noise + 0.01 * own + 0.02 * is_other)
    first, other = read_rows(plan)
    difference = compare(other, first)
    assert difference is not None
    assert difference.p_windows is not None
    assert difference.p_windows < 0.001
    assert difference.p_seeds == 1  # seeds do not differ at all


def test_windows_of_several_sources_are_not_paired(plan: Plan):
    for number, cell in enumerate(plan.trainings):
        finish(cell, 0.5, errors=np.random.default_rng(number).normal(size=WINDOWS) + 5)
    first, other = read_rows(plan)
    of_one = compare(other, first)
    assert of_one is not None
    assert of_one.p_windows is not None
    sources = [SourceConfig(name=name, path=f"{name}.csv") for name in ("one", "two")]
    several = DataConfig(sources=sources, pred_len=first.measured[0].data.pred_len)
    rows = [
        replace(row, measured=tuple(
            replace(one, data=several) for one in row.measured
        ))
        for row in (other, first)
    ]  # fmt: skip
    difference = compare(*rows)
    assert difference is not None
    assert difference.p_windows is None


def test_rows_of_other_windows_are_not_paired_by_window(plan: Plan):
    for number, cell in enumerate(plan.trainings):
        finish(cell, 0.5 + number / 10, errors=np.full(WINDOWS - number // 3, 0.5))
    first, other = read_rows(plan)
    difference = compare(other, first)
    assert difference is not None
    assert difference.p_windows is None


def test_of_several_learning_rates_validation_chooses_never_test(tmp_path: Path):
    plan = plan_of(base_run(tmp_path), seeds=2, learning_rates=[1e-3, 1e-4])
    for variant in plan.variants:
        is_small = variant.learning_rate == 1e-4
        for cell in variant.cells:  # the small one is better on validation, and worse on test
            finish(cell, 0.9 if is_small else 0.1, val_mse=0.3 if is_small else 0.4)
    for row in read_rows(plan):
        assert (row.learning_rate, row.mse[0]) == (1e-4, 0.9)


def test_a_rate_that_failed_for_a_seed_is_not_preferred(tmp_path: Path):
    plan = plan_of(base_run(tmp_path), seeds=2, learning_rates=[1e-3, 1e-4])
    for variant in plan.variants:
        for number, cell in enumerate(variant.cells):
            if variant.learning_rate == 1e-4 and number == 1:
                write_failure(cell, 71, "out of memory")
            else:
                finish(cell, 0.5, val_mse=0.3 if variant.learning_rate == 1e-4 else 0.4)
    rows = read_rows(plan)
    assert [row.learning_rate for row in rows] == [1e-3, 1e-3]
    # It counts and is told all the same: had it finished, it might have been preferred.
    assert [(row.failures, row.num_failed, row.num_missing) for row in rows] == [({}, 1, 0)] * 2
    text = to_markdown(make_table(plan))
    assert "* **first**, learning rate 0.0001, seed 2022, failed: out of memory" in text
    assert (
        "* **first**: the learning rate 0.001 was chosen although others have not finished: 0.0001."
    ) in text
    assert make_table(plan).num_failed == 2


def test_a_failed_cell_is_a_row_that_says_so(plan: Plan):
    finish(plan.trainings[0], 0.5)
    write_failure(plan.trainings[1], 71, "out of memory on the GPU")
    first, other = read_rows(plan)
    assert dict(first.failures) == {2022: "out of memory on the GPU"}
    assert (len(first.measured), first.missing) == (1, (2023,))
    assert other.measured == ()
    assert compare(other, first) is None
    assert read_baselines(plan) == []


def test_a_folder_with_other_settings_is_refused(plan: Plan):
    cell = plan.trainings[0]
    finish(cell, 0.5, config=replace(cell.config, train=replace(cell.config.train, max_steps=9)))
    with pytest.raises(ConfigError, match="holds a run of other settings than its cell"):
        is_finished(cell)


def test_another_seed_in_the_folder_is_refused(plan: Plan):
    cell = plan.trainings[0]
    finish(cell, 0.5, config=replace(cell.config, train=replace(cell.config.train, seed=9)))
    with pytest.raises(ConfigError, match="holds a run of other settings than its cell"):
        read_rows(plan)


def test_rows_of_two_versions_of_the_data_are_refused(plan: Plan):
    for number, cell in enumerate(plan.trainings):
        finish(cell, 0.5, data="old" if number < 3 else "new")
    rows = read_rows(plan)
    first, other = (row.folder.name for row in rows)
    message = rf"cells: {first} read another version of .*series\.csv than {other}; restore the"
    with pytest.raises(ConfigError, match=message):
        check_one_data(rows)
    check_one_data(rows[:1])


def test_a_seed_of_another_version_of_the_data_is_refused(plan: Plan):
    for number, cell in enumerate(plan.trainings[:3]):
        finish(cell, 0.5, data="old" if number < 2 else "new")
    with pytest.raises(ConfigError, match="read another version of"):
        check_one_data(read_rows(plan))


def test_rows_that_read_other_files_or_columns_are_no_versions_of_one(tmp_path: Path):
    keys = ["", "--data.columns=[a]", "--data.dataset=weather", "--data.root=elsewhere"]
    rows = [Row(name=f"r{n}", keys=tuple(key.split())) for n, key in enumerate(keys)]
    more = ["--data.path=null", "--data.dataset=ETTh1"]
    plan = plan_of(base_run(tmp_path), rows, seeds=1, more=more)
    for number, cell in enumerate(plan.trainings):
        finish(cell, 0.5, data=f"d{number}")
    assert len(plan.trainings) == len(rows)
    check_one_data(read_rows(plan))


@pytest.mark.parametrize(
    ("key", "facts", "why"),
    [
        ("--data.seq_len=40", {}, None),
        ("--data.train_stride=2", {}, None),
        ("--data.pred_len=5", {}, "it forecasts 5 steps, not 12"),
        ("--data.percent=50", {"data": "e"}, "it is scored on other data"),
        ("--data.columns=[a]", {}, "it forecasts other variates"),
        ("--data.splits=[0.6,0.2,0.2]", {"num_windows": 100},
         "it is scored on 100 test windows, not 240"),
    ],
)  # fmt: skip
def test_rows_that_answer_another_question_are_not_compared(
    tmp_path: Path, key: str, facts: dict[str, Any], why: str | None
):
    rows = [Row(name="first", keys=("--data.pred_len=12",)), Row(name="other", keys=(key,))]
    plan = plan_of(base_run(tmp_path), rows, seeds=2, more=["--data.pred_len=12"])
    for number, cell in enumerate(plan.trainings):
        finish(cell, 0.5 + number / 100, **(facts if number > 1 else {}))
    first, other = read_rows(plan)
    assert unlike(other, first) == why
    assert (compare(other, first) is None) == (why is not None)
    assert unlike(first, first) is None


def test_a_torn_result_counts_as_none(plan: Plan):
    finish(plan.trainings[0], 0.5)
    path = plan.trainings[0].folder / "result.json"
    path.write_text(path.read_text()[:40])
    assert not is_finished(plan.trainings[0])
