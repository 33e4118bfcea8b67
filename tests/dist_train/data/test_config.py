"""dist_train/data/config.py: values that contradict each other stop before any file is read."""

import pytest

from dist_train.data.config import DataConfig, DataError


@pytest.mark.parametrize(
    ("keys", "message"),
    [({"seq_len": 0}, "data.seq_len must be at least 1, got 0"),
     ({"val_stride": 0}, "data.val_stride must be at least 1"),
     ({"val_series": 0}, "data.val_series must be at least 1, got 0"),
     ({"percent": 0}, r"data.percent must be in \[1, 100\], got 0"),
     ({"num_workers": -1}, "data.num_workers must not be negative"),
     ({"splits": [0.7, 0.3]}, "data.splits must be three positive shares"),
     ({"splits": [0.7, 0.2, 0.2]}, "data.splits must sum to 1"),
     ({"seasonal_period": 0}, "data.seasonal_period must be at least 1")],
)  # fmt: skip
def test_impossible_values_are_refused(keys: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        DataConfig(**keys)  # type: ignore[arg-type]


def test_a_data_error_is_a_value_error():
    assert issubclass(DataError, ValueError)
