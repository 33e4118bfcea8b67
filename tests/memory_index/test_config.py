"""memory_index/config.py: the limit, and what is refused."""

import ast
import inspect
from itertools import pairwise

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


@pytest.mark.parametrize(
    "key", ["bank_stride", "num_samples", "max_memory_size", "nlist", "nprobe", "refine"]
)
def test_refuses_sizes_below_one(key: str):
    with pytest.raises(ValueError, match=rf"bank\.{key} must be at least 1, got 0"):
        BankConfig(**{key: 0})


@pytest.mark.parametrize("share", [0.0, -0.5, 1.01])
def test_refuses_a_recall_that_is_no_share(share: float):
    with pytest.raises(ValueError, match=rf"bank\.min_recall must be in \(0, 1\], got {share}"):
        BankConfig(min_recall=share)


@pytest.mark.parametrize("size", [0.0, -1.0, float("nan")])
def test_refuses_memory_of_no_size(size: float):
    with pytest.raises(ValueError, match=rf"bank\.memory_gib must be positive, got {size}"):
        BankConfig(memory_gib=size)


def test_refuses_a_graph_on_a_gpu():
    with pytest.raises(ValueError, match=r"bank\.index=hnsw is searched on the CPU only"):
        BankConfig(index="hnsw", device="gpu")
    assert BankConfig(index="hnsw", device="auto").device == "auto"


def test_every_key_has_its_help_text():
    source = ast.parse(inspect.getsource(BankConfig))
    body = source.body[0].body  # type: ignore[attr-defined]
    for node, after in pairwise(body):
        if isinstance(node, ast.AnnAssign):
            assert isinstance(after, ast.Expr), f"{ast.unparse(node)} has no docstring under it"
