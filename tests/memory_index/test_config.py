"""memory_index/config.py: the limit, and what is refused."""

import pytest

from memory_index.config import BankConfig


@pytest.mark.parametrize(
    ("num_samples", "max_memory_size", "limit"),
    [(None, None, None), (5000, None, 5000), (None, 10000, 10000), (5000, 10000, 5000)],
)
def test_the_smaller_of_sample_and_capacity_limits_the_bank(
    num_samples: int | None, max_memory_size: int | None, limit: int | None
):
    config = BankConfig(num_samples=num_samples, max_memory_size=max_memory_size)
    assert config.limit == limit


def test_by_default_every_training_window_is_an_entry():
    assert (BankConfig().bank_stride, BankConfig().limit) == (1, None)


@pytest.mark.parametrize("key", ["bank_stride", "num_samples", "max_memory_size"])
def test_refuses_sizes_below_one(key: str):
    with pytest.raises(ValueError, match=rf"bank\.{key} must be at least 1, got 0"):
        BankConfig(**{key: 0})
