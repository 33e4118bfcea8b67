"""dist_train/data/frequency.py: a step means what it meant in training."""

import numpy as np
import pandas as pd
import pytest

from dist_train.data.config import DataConfig, DataError
from dist_train.data.frequency import at_frequency
from dist_train.data.series import SeriesSet, from_table


def series_set(frequency: str, rows: int = 20, start: str = "2024-01-01") -> SeriesSet:
    dates = pd.date_range(start, periods=rows, freq=frequency)
    table = pd.DataFrame({"date": dates, "a": np.arange(rows) * 1.0})
    return from_table(table, DataConfig(path="own.csv"), name="own")


@pytest.mark.parametrize(("found", "expected"), [("h", "h"), ("h", None), ("W-WED", "W-TUE")])
def test_what_has_the_same_step_stays_as_it_is(found: str, expected: str | None):
    given = series_set(found)
    assert at_frequency(given, expected, "own").frequency == found


def test_a_few_rows_go_on_as_the_training_did():
    week = series_set("B", rows=5)  # Monday to Friday, which days follow too
    assert week.frequency == "D"
    assert at_frequency(week, "B", "own").frequency == "B"


@pytest.mark.parametrize(("found", "expected"), [("D", "h"), ("2h", "h"), ("MS", "ME"), ("B", "D")])
def test_another_frequency_is_refused(found: str, expected: str):
    message = f"the time stamps of own have the frequency {found}, .* was trained on {expected}"
    with pytest.raises(DataError, match=message):
        at_frequency(series_set(found), expected, "own")
