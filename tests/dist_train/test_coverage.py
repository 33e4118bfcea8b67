"""dist_train/coverage.py: what is told of intervals is what a count at once gives."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from dist_train import coverage
from dist_train.baselines import repeat_last
from dist_train.calibration import calibrate
from dist_train.conformal import Calibration, supported_levels
from dist_train.coverage import Coverage, CoverageSums
from dist_train.data.windows import ForecastData
from dist_train.evaluation import score_split
from tests.helpers.forecast_data import data_of_sources, source_of, wide_data
from tests.helpers.ranks import run_ranks

SEQ_LEN, PRED_LEN = 24, 6


def walk(rows: int = 1600, variates: int = 3) -> ForecastData:
    rng = np.random.default_rng(0)
    values = np.cumsum(rng.normal(size=(rows, variates)), axis=0) * np.arange(1, variates + 1)
    return wide_data(values, SEQ_LEN, PRED_LEN)


def measure(data: ForecastData, known: Calibration, batch_size: int) -> tuple[Coverage, ...]:
    counted = CoverageSums(known, data, "test")
    score_split({"m": repeat_last}, data, "test", batch_size=batch_size, observers=[counted])
    return counted.finish()


def measure_to_file(rank: int, world_size: int, data: ForecastData, out: Path) -> None:
    known = calibrate(repeat_last, data, batch_size=16)
    rows = [
        [one.level, one.covered, one.width, one.interval_score, *one.per_channel, *one.per_step]
        for one in measure(data, known, 5 + rank)
    ]
    torch.save(torch.tensor(rows, dtype=torch.float64), out / f"{world_size}-{rank}.pt")


@pytest.mark.ranks
def test_shares_widths_and_scores_are_those_of_a_count_at_once_on_any_ranks(tmp_path: Path):
    data = walk()
    for world_size in (1, 3):
        run_ranks(measure_to_file, world_size, data, tmp_path)
    known = calibrate(repeat_last, data, batch_size=16)
    windows = data.windows["test"]
    context, target = windows.batch(range(len(windows)))
    forecast = np.repeat(context[:, -1:].astype(np.float64), PRED_LEN, axis=1)
    channels = data.channels_of(np.arange(len(windows)), "test")
    expected = []
    for level in (20, 40, 60, 80, 90, 95):  # 149 windows do not support 99
        lower, upper = known.interval(forecast, context, channels, level)
        within = (target >= lower) & (target <= upper)
        alpha = 1 - level / 100
        below, above = (
            np.where(target < lower, lower - target, 0),
            np.where(target > upper, target - upper, 0),
        )
        score = (upper - lower + 2 / alpha * (below + above)).mean()
        per_channel, per_step = within.mean(axis=(0, 1)), within.mean(axis=(0, 2))
        expected.append([
            level, 100 * within.mean(), (upper - lower).mean(), score,
            *(100 * per_channel), *(100 * per_step),
        ])  # fmt: skip
    files = sorted(tmp_path.glob("*.pt"))
    assert len(files) == 4
    for path in files:
        found = torch.load(path, weights_only=True).numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert supported_levels(len(data.windows["val"]))[-1] < 99


def test_windows_like_those_of_validation_are_covered_as_promised():
    rng = np.random.default_rng(5)
    data = wide_data(rng.normal(size=(6000, 2)) ** 3, SEQ_LEN, PRED_LEN)
    for one in measure(data, calibrate(repeat_last, data, batch_size=128), 256):
        assert one.covered == pytest.approx(one.level, abs=3)


def test_the_summary_and_the_table_tell_80_and_95():
    measured = [
        Coverage(
            level=level, covered=level - 1.234, width=0.5, interval_score=0.75,
            per_channel=(level - 10, level + 2), per_step=(level, level + 3.0),
        )
        for level in (20.0, 80.0, 95.0)
    ]  # fmt: skip
    assert coverage.summary(measured) == {"coverage_80": 78.77, "coverage_95": 93.77}
    lines = coverage.table(measured, "test").splitlines()
    assert lines[0].startswith("| interval | covers on test |")
    assert lines[2] == "| 80 % | 78.8 % | 70.0 % | 83.0 % | 0.5000 | 0.7500 |"
    assert len(lines) == 4
    assert coverage.table(measured[:1], "test") == ""


def test_a_shorter_horizon_is_covered_over_its_own_steps():
    dates = pd.date_range("2020", periods=1500, freq="h").to_numpy()
    rng = np.random.default_rng(0)
    values, steps = rng.normal(size=(2, 1500)), PRED_LEN - 1
    long = source_of("long", [(dates, values[0])])
    short = source_of("short", [(dates, values[1])], pred_len=steps)
    both = data_of_sources([long, short], 24, PRED_LEN)
    measured = {
        number: measure(data, calibrate(repeat_last, data, batch_size=64), 64)
        for number, data in enumerate((both, both.only(0), both.only(1)))
    }
    for whole, first, second in zip(*measured.values(), strict=True):
        assert whole.level == first.level == second.level
        assert whole.per_channel == pytest.approx((first.covered, second.covered))
        assert len(whole.per_step) == PRED_LEN
        assert whole.per_step[-1] == pytest.approx(first.per_step[-1])
        counts = np.array([len(both.only(n).windows["test"]) for n in (0, 1)]) * (PRED_LEN, steps)
        width = np.average([first.width, second.width], weights=counts)
        assert whole.width == pytest.approx(width, rel=1e-5)
