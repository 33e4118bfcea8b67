"""dist_train/data/values.py: only finite numbers that float32 can hold get through."""

import numpy as np
import pandas as pd
import pytest

from dist_train.data.config import DataError
from dist_train.data.values import clean_numbers, read_values

DATES = np.arange("2020-01-01", "2020-01-06", dtype="datetime64[D]").astype("datetime64[ns]")


def table(*cells: object) -> pd.DataFrame:
    return pd.DataFrame({"a": [1.0, 2.0, 3.0, 4.0, 5.0], "b": list(cells)})


@pytest.mark.parametrize(
    ("cells", "message"),
    [((1, 2, "x", 4, "y"), "column 'b' has 'x' at row 3, which is not a number.*data.columns"),
     ((1, None, 3, None, 5), r"column 'b' has no value at row 2 \(2020-01-02 .*\), and 2 missing"),
     ((1, 2, 3, np.inf, 5), "column 'b' has the value inf at row 4 .*data.missing=interpolate"),
     ((1, 2, 3, 4, -1e39), "column 'b' has -1e.39 at row 5, more than float32"),
     (tuple(DATES), "column 'b' has '2020-01-01.*' at row 1, which is not a number")],
    ids=["text", "missing", "infinite", "too large", "dates"],
)  # fmt: skip
def test_what_is_no_number_is_refused(cells: tuple[object, ...], message: str):
    with pytest.raises(DataError, match=message):
        read_values(table(*cells), DATES, "error")


def test_gaps_are_filled_linearly_and_edges_with_the_nearest():
    notes: list[str] = []
    got = read_values(table(None, 2.0, np.nan, -np.inf, 8.0), DATES, "interpolate", notes=notes)
    np.testing.assert_array_equal(got[:, 1], [2, 2, 4, 6, 8])
    np.testing.assert_array_equal(got[:, 0], [1, 2, 3, 4, 5])
    assert notes == [
        "3 missing values of column 'b' interpolated: a window that ends in such a gap knows what "
        "follows it"
    ]


def test_fills_with_what_was_known_by_then():
    notes: list[str] = []
    got = read_values(table(None, 2.0, np.nan, -np.inf, 8.0), DATES, "forward", notes=notes)
    assert got[:, 1].tolist() == [2.0, 2.0, 2.0, 2.0, 8.0]
    assert notes == ["3 missing values of column 'b' filled with the last one before"]


@pytest.mark.parametrize("missing", ["error", "interpolate", "forward"])
def test_a_column_without_any_value_is_refused(missing: str):
    with pytest.raises(DataError, match="column 'b' has no value at all: leave it out"):
        read_values(table(*[None] * 5), DATES, missing)  # type: ignore[arg-type]


def test_truth_values_and_numbers_in_quotes_are_numbers():
    np.testing.assert_array_equal(
        read_values(table(True, False, True, False, True), DATES, "error")[:, 1], [1, 0, 1, 0, 1]
    )
    np.testing.assert_array_equal(
        read_values(table("1", "2", "3", "4", "5e0"), DATES, "error")[:, 1], [1, 2, 3, 4, 5]
    )


@pytest.mark.parametrize(
    "cells", [["1"], [True], [None, 1.0], [np.inf], [1e39], [-9999.0], [pd.Timestamp("2020")]]
)
def test_a_column_that_something_is_to_be_said_of_is_not_clean(cells: list[object]):
    assert clean_numbers(pd.Series(cells), sentinels=(-9999.0,)) is None


@pytest.mark.parametrize("dtype", ["int8", "float32", "float64", "Int64"])
def test_a_clean_column_is_read_as_its_numbers(dtype: str):
    values = clean_numbers(pd.Series([1, 2, 3], dtype=dtype))
    assert values is not None
    assert values.dtype == np.float64
    np.testing.assert_array_equal(values, [1, 2, 3])
