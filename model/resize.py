"""Stretch or shrink the last axis of a tensor by linear interpolation."""

import torch
import torch.nn.functional as F
from torch import Tensor


def resize_last_dim(values: Tensor, width: int) -> Tensor:
    """Interpolate the last axis linearly to ``width`` cells.

    A matrix product instead of ``F.interpolate``: the backward pass of that one adds in no fixed
    order on CUDA, and two runs of one seed would differ.

    Args:
        values: Any tensor of floating point. Shape (..., W).
        width: Cells wanted, at least 1. Equal to W, ``values`` itself comes back.

    Returns:
        The same extent seen in ``width`` cells (``align_corners=False``). Shape (..., width).

    Raises:
        ValueError: ``width`` is below 1, or the last axis is empty.
    """
    if values.ndim == 0 or values.shape[-1] < 1 or width < 1:
        raise ValueError(
            f"resize_last_dim got values of shape {tuple(values.shape)} and width={width}: "
            "both widths must be at least 1."
        )
    if values.shape[-1] == width:
        return values
    # Column j holds the shares of the old cells in new cell j.
    eye_WW = torch.eye(values.shape[-1], device=values.device, dtype=torch.float32)
    shares_WV = F.interpolate(eye_WW[None], size=width, mode="linear", align_corners=False)[0]
    return values @ shares_WV.to(values.dtype)
