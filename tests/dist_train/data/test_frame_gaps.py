"""dist_train/data/frame_gaps.py: what a frame lacks is found, the newest of each series."""

from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pytest

from dist_train.data.frame_gaps import Filled, fill_gaps, newest_filled


def long() -> pd.DataFrame:
    dates = pd.date_range("2024-01-01", periods=6, freq="h")
    parts = [pd.DataFrame({"unique_id": id_, "ds": dates, "y": np.arange(6.0)}) for id_ in "ab"]
    return pd.concat(parts, ignore_index=True)


def test_a_skipped_stamp_is_filled_where_it_was():
    table = long().drop(index=[3, 7]).reset_index(drop=True)
    whole, rows = fill_gaps(table, np.arange(10), "long", "ds", "h")
    assert list(whole["ds"]) == list(long()["ds"])
    assert list(rows) == [0, 1, 2, 3, 3, 4, 5, 6, 6, 7, 8, 9]
    assert newest_filled(whole, "long", "ds", ["y"], "own") == {
        "a": Filled(row=3, column="y", date=np.datetime64("2024-01-01T03", "ns")),
        "b": Filled(row=1, column="y", date=np.datetime64("2024-01-01T01", "ns")),
    }


@pytest.mark.parametrize("cell", [np.nan, np.inf, None, pd.NA])
def test_the_newest_of_several_is_found(cell: Any):
    dates = pd.date_range("2024-01-01", periods=4, freq="h")
    table = pd.DataFrame({"date": dates, "a": [cell, 1, 2, 3], "b": [Decimal(1), 2, cell, 3]})
    found = newest_filled(table, "wide", "date", ["a", "b"], "own")
    assert found == {"own": Filled(row=2, column="b", date=dates.to_numpy()[2])}
    assert newest_filled(table.iloc[3:], "wide", "date", ["a", "b"], "own") == {}
