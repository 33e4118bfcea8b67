"""dist_train/data/standardise.py: series on the scale of their training rows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_train.data.config import DataError
from dist_train.data.standardise import standardise


def test_training_rows_alone_set_the_scale():
    values = np.random.default_rng(0).normal(5, 3, size=(100, 2))
    values[60:] += 1000
    made = standardise(values, (0, 60), ("a", "b"), "x")
    mean, scale = values[:60].mean(axis=0), values[:60].std(axis=0)
    np.testing.assert_array_equal(made.values, ((values - mean) / scale).astype(np.float32))
    assert made.values.dtype == np.float32
    assert made.values[60:].min() > 100


def test_constant_training_rows_keep_their_unit():
    values = np.full((10, 1), 7.0)
    values[8:] = 9.0
    made = standardise(values, (0, 6), ("a",), "x")
    assert made.scaler.constant == (0,)
    np.testing.assert_array_equal(made.values[:, 0], [0] * 8 + [2] * 2)


@settings(deadline=None)
@given(
    loc=st.floats(-1e6, 1e6),
    scale=st.floats(1e-3, 1e6),
    rows=st.integers(4, 40),
    n=st.integers(1, 3),
)
def test_the_scaler_brings_values_back(loc: float, scale: float, rows: int, n: int):
    values = loc + scale * np.random.default_rng(rows).normal(size=(rows, n))
    made = standardise(values, (0, rows // 2), ("a", "b", "c")[:n], "x")
    back = made.scaler.inverse(made.values)
    spread = np.abs(values - made.scaler.mean).max()
    np.testing.assert_allclose(back, values, rtol=1e-9, atol=1e-6 * spread)


def test_a_value_too_far_away_is_refused_with_its_place():
    values = np.array([[1.0, 1.0], [1.0 + 1e-15, 2.0], [1.0, 1.0], [1e30, 3.0]])
    message = r"column 'a' of series 'x' has 1e\+30 at row 4, too far from its training rows"
    with pytest.raises(DataError, match=message):
        standardise(values, (0, 3), ("a", "b"), "x")
