"""dist_train/data/splits.py: TSLib's borders, and a scaler that knows the training rows alone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.preprocessing import StandardScaler

from dist_train.data.config import DataError
from dist_train.data.splits import Scaler, borders


def test_shares_are_rounded_as_tslib_does():
    # 52696 rows of weather: int(.7 T), the rest, int(.2 T), from TSLib's Dataset_Custom.
    assert borders(52696, (0.7, 0.1, 0.2)) == {
        "train": (0, 36887), "val": (36887, 42157), "test": (42157, 52696),
    }  # fmt: skip


@given(st.integers(10, 100_000), st.sampled_from([(0.7, 0.1, 0.2), (0.6, 0.2, 0.2), (1 / 3,) * 3]))
def test_shares_use_every_row_once_in_time_order(num_rows: int, split: tuple[float, float, float]):
    cut = borders(num_rows, split)
    assert cut["train"][0] == 0
    assert cut["train"][1] == cut["val"][0]
    assert cut["val"][1] == cut["test"][0]
    assert cut["test"][1] == num_rows


def test_rows_beyond_counts_are_left_out():
    assert borders(17420, (8640, 2880, 2880))["test"] == (11520, 14400)


def test_too_few_rows_for_counts_are_refused():
    with pytest.raises(DataError, match=r"series 'a' has 100 rows, .*needs 14400: .*data.splits"):
        borders(100, (8640, 2880, 2880), "series 'a'")


def test_the_scaler_equals_scikit_learns():
    values = np.random.default_rng(0).normal(50, 3, (40, 3))
    scaler, theirs = Scaler.fit(values), StandardScaler().fit(values)
    np.testing.assert_allclose(scaler.transform(values), theirs.transform(values))
    np.testing.assert_allclose(scaler.inverse(scaler.transform(values)), values)


def test_a_constant_variate_is_shifted_but_not_scaled():
    values = np.full((7, 2), 0.1)  # its mean is rounded: a deviation of 1e-17 must not count
    values[:, 1] = np.arange(7)
    scaler = Scaler.fit(values)
    assert scaler.constant == (0,)
    assert scaler.scale[0] == 1
    np.testing.assert_array_equal(scaler.transform(values)[:, 0], 0)


def test_a_scaler_without_rows_is_refused():
    with pytest.raises(ValueError, match=r"T > 0, got shape \(0, 2\)"):
        Scaler.fit(np.zeros((0, 2)))
