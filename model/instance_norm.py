"""Normalise each window by its own statistics, and undo it on the forecast.

The statistics are returned, never stored: two batches in flight cannot mix theirs.

Shape legend (this file):
    B  windows in the micro-batch     L  seq_len, in time steps
    N  variates                       H  pred_len, in time steps
"""

from typing import Literal

from torch import Tensor

VARIANCE_FLOOR = 1e-5
"""Added to the variance, so that a window without variance has a finite scale (Time-LLM's)."""


def normalize(context: Tensor, mode: Literal["mean", "last"]) -> tuple[Tensor, Tensor, Tensor]:
    """Shift and scale every (window, variate) by its own statistics.

    Args:
        context: Windows, oldest step first. Shape (B, L, N), any floating type.
        mode: What is subtracted: the mean over L, or the last value. The scale is the same.

    Returns:
        ``(normalised, loc, scale)``, shapes (B, L, N), (B, 1, N), (B, 1, N), all float32;
        ``scale`` is ``sqrt(var + 1e-5)`` with the population variance over L.

    Raises:
        ValueError: ``context`` is not 3-D, or ``mode`` is unknown.

    Source: RevIN, Kim et al. 2022; ``mode="last"``: NLinear, Zeng et al. 2023.
    """
    if context.ndim != 3:
        raise ValueError(
            f"context has shape {tuple(context.shape)}: pass windows of shape (B, L, N)."
        )
    context_BLN = context.float()
    mean_B1N = context_BLN.mean(dim=1, keepdim=True)
    variance_B1N = (context_BLN - mean_B1N).square().mean(dim=1, keepdim=True)
    scale_B1N = (variance_B1N + VARIANCE_FLOOR).sqrt()
    if mode == "mean":
        loc_B1N = mean_B1N
    elif mode == "last":
        loc_B1N = context_BLN[:, -1:]
    else:
        raise ValueError(f"model.norm={mode!r} is unknown: use mean or last.")
    return (context_BLN - loc_B1N) / scale_B1N, loc_B1N, scale_B1N


def denormalize(forecast: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    """Bring a normalised forecast back to the scale of its window.

    Args:
        forecast: Normalised forecast. Shape (B, H, N), any floating type.
        loc: What :func:`normalize` subtracted. Shape (B, 1, N), float32.
        scale: What :func:`normalize` divided by. Shape (B, 1, N), float32.

    Returns:
        The forecast in the units of the window. Shape (B, H, N), float32.
    """
    return forecast.float() * scale + loc
