"""model/resize.py: the same answer as torch's own interpolation."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from model.resize import resize_last_dim


@settings(deadline=None)
@given(width=st.integers(1, 40), wanted=st.integers(1, 40))
def test_equals_torchs_interpolation(width: int, wanted: int):
    values = torch.randn(2, 3, width)
    expected = F.interpolate(values, size=wanted, mode="linear", align_corners=False)
    torch.testing.assert_close(resize_last_dim(values, wanted), expected)


def test_the_same_width_returns_the_tensor_itself():
    values = torch.randn(2, 5)
    assert resize_last_dim(values, 5) is values


def test_a_constant_stays_constant_in_any_width():
    torch.testing.assert_close(
        resize_last_dim(torch.full((2, 96), 3.0), 192), torch.full((2, 192), 3.0)
    )


@pytest.mark.parametrize(("shape", "width"), [((2, 4), 0), ((2, 0), 4)])
def test_refuses_empty_axes(shape: tuple[int, int], width: int):
    with pytest.raises(ValueError, match=rf"width={width}: both widths must be at least 1"):
        resize_last_dim(torch.zeros(shape), width)
