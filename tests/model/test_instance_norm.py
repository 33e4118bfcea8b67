"""model/instance_norm.py: the statistics, the way back, and windows without variance."""

from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.instance_norm import denormalize, normalize

MODES: tuple[Literal["mean", "last"], ...] = ("mean", "last")


@pytest.mark.parametrize("mode", MODES)
def test_matches_the_obvious_loop(mode: Literal["mean", "last"]):
    context = torch.randn(2, 24, 3, generator=torch.Generator().manual_seed(0)) * 5 + 2
    normalised, loc, scale = normalize(context, mode)
    assert loc.shape == scale.shape == (2, 1, 3)
    for b in range(2):
        for n in range(3):
            window = context[b, :, n]
            std = (window.var(unbiased=False) + 1e-5).sqrt()
            center = window.mean() if mode == "mean" else window[-1]
            torch.testing.assert_close(scale[b, 0, n], std)
            torch.testing.assert_close(normalised[b, :, n], (window - center) / std)


@given(
    mode=st.sampled_from(MODES),
    offset=st.floats(-100, 100),
    spread=st.floats(0.0, 50),
    seed=st.integers(0, 2**31),
)
def test_denormalize_undoes_normalize(
    mode: Literal["mean", "last"], offset: float, spread: float, seed: int
):
    context = torch.randn(1, 16, 2, generator=torch.Generator().manual_seed(seed))
    context = context * spread + offset
    torch.testing.assert_close(
        denormalize(*normalize(context, mode)), context, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("mode", MODES)
def test_a_window_without_variance_is_finite_and_zero(mode: Literal["mean", "last"]):
    normalised, loc, scale = normalize(torch.full((1, 600, 1), 7.0), mode)
    assert (normalised == 0).all()
    assert loc.item() == 7.0
    assert scale.item() == pytest.approx(1e-5**0.5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_everything_is_float32(dtype: torch.dtype):
    values = normalize(torch.randn(1, 8, 1).to(dtype), "mean")
    assert [value.dtype for value in values] == [torch.float32] * 3
    assert denormalize(values[0].bfloat16(), *values[1:]).dtype == torch.float32


def test_refuses_the_wrong_rank():
    with pytest.raises(ValueError, match=r"context has shape \(8, 2\): pass .*\(B, L, N\)"):
        normalize(torch.zeros(8, 2), "mean")


def test_refuses_an_unknown_mode():
    with pytest.raises(ValueError, match=r"model\.norm='median' is unknown: use mean or last"):
        normalize(torch.zeros(1, 8, 2), "median")
