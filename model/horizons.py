"""Windows whose horizon is shorter than the model's: their targets are NaN beyond it.

Shape legend (this file):
    H  pred_len     ...  any shape
"""

import torch
from torch import Tensor


def fill_unknown(target: Tensor, forecast: Tensor) -> Tensor:
    """Take the forecast for the truth where that is not known, so that its error there is 0.

    Args:
        target: NaN where it is not known. Any shape.
        forecast: Of the same shape; no gradient flows through what is filled in.
    """
    return torch.where(target.isnan(), forecast.detach().to(target.dtype), target)


def squared_errors(forecast: Tensor, target: Tensor) -> Tensor:
    """Squared errors whose mean over all steps is each window's own over the known ones.

    Args:
        forecast: The steps second. Shape (..., H, ...).
        target: NaN where it is not known. Of the same shape.

    Returns:
        0 where the target is not known. Of the same shape.
    """
    return (forecast - fill_unknown(target, forecast)).square() * stretch(target)


def mean_squared_error(forecast: Tensor, target: Tensor) -> Tensor:
    """Mean over windows of each one's mean over the steps that are known.

    Args:
        forecast: The steps second. Shape (..., H, ...).
        target: NaN where it is not known. Of the same shape.

    Returns:
        Scalar.
    """
    return squared_errors(forecast, target).mean()


def stretch(target: Tensor) -> Tensor:
    """Say what a mean over all steps has to be multiplied by to be one over the known ones.

    Args:
        target: NaN beyond the horizon of its window. Shape (..., H, ...), the steps second.

    Returns:
        Exactly 1 where all is known. Shape (..., 1, ...), of the type of the target.
    """
    known = (~target.isnan()).sum(dim=1, keepdim=True).clamp_min(1)
    return target.shape[1] / known.to(target.dtype)
