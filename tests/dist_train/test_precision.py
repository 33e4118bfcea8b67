"""dist_train/precision.py: the compute type that was asked for, and the same on every rank."""

from pathlib import Path

import pytest
import torch

from dist_train import precision
from dist_train.precision import DTYPES, dtype_name, resolve_dtype
from tests.helpers.ranks import run_ranks


def product_times(monkeypatch: pytest.MonkeyPatch, fp32_s: float, bf16_s: float) -> None:
    times = {torch.float32: fp32_s, torch.bfloat16: bf16_s}
    monkeypatch.setattr(precision, "_product_time_s", times.__getitem__)


@pytest.mark.parametrize("name", ["bf16", "fp16", "fp32"])
def test_a_named_type_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.delattr(precision, "_product_time_s")  # nothing is measured
    dtype = resolve_dtype(name)  # type: ignore[arg-type]
    assert dtype == DTYPES[name]
    assert dtype_name(dtype) == name


@pytest.mark.parametrize(
    ("speedup", "expected"),
    [(0.5, torch.float32), (1.4, torch.float32), (1.6, torch.bfloat16), (10.0, torch.bfloat16)],
)
def test_a_cpu_takes_bf16_only_where_it_wins_clearly(
    monkeypatch: pytest.MonkeyPatch, speedup: float, expected: torch.dtype
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    product_times(monkeypatch, fp32_s=speedup, bf16_s=1.0)
    assert resolve_dtype("auto") == expected


@pytest.mark.parametrize(("has_bf16", "expected"), [(True, "bf16"), (False, "fp16")])
def test_a_gpu_takes_bf16_where_it_has_it(
    monkeypatch: pytest.MonkeyPatch, has_bf16: bool, expected: str
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.cuda,
        "is_bf16_supported",
        lambda including_emulation=True: has_bf16 or including_emulation,
    )
    assert dtype_name(resolve_dtype("auto")) == expected


def test_the_measurement_is_a_time():
    assert 0 < precision._product_time_s(torch.float32) < 10


def resolve_on_unequal_ranks(rank: int, world_size: int, out: Path) -> None:
    """bf16 is ten times faster on rank 0 and ten times slower on the others."""
    with pytest.MonkeyPatch.context() as patch:
        product_times(patch, fp32_s=10.0 if rank == 0 else 0.1, bf16_s=1.0)
        (out / str(rank)).write_text(dtype_name(resolve_dtype("auto")))


@pytest.mark.ranks
def test_all_ranks_take_what_rank_0_measured(tmp_path: Path):
    run_ranks(resolve_on_unequal_ranks, 3, tmp_path)
    assert [path.read_text() for path in sorted(tmp_path.iterdir())] == ["bf16"] * 3
