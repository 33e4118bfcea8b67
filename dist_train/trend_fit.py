"""Thresholds of the trend labels, taken from the training windows once before training."""

import numpy as np
import torch
from numpy.typing import NDArray

from dist_train.data.windows import WindowSet
from model.instance_norm import VARIANCE_FLOOR

MAX_ROWS = 200_000
CHUNK_WINDOWS = 1024


def training_changes(windows: WindowSet) -> torch.Tensor:
    """Measure the change over the horizon of training windows, all of them or an even sample.

    Args:
        windows: The training windows.

    Returns:
        Mean of the future minus last value, over the window's scale. Shape (n,), float32, n at
        most about 200 000; the same on every rank.
    """
    ids = windows.even_sample(max(1, MAX_ROWS // windows.num_variates))
    changes = []
    for first in range(0, len(ids), CHUNK_WINDOWS):
        context_BLN, target_BHN = windows.batch(ids[first : first + CHUNK_WINDOWS])
        scale_BN = np.sqrt(context_BLN.var(axis=1) + VARIANCE_FLOOR)
        mean_BN = _mean_of_known(target_BHN)
        changes.append((mean_BN - context_BLN[:, -1]) / scale_BN)
    return torch.from_numpy(np.concatenate(changes).ravel().astype(np.float32))


def _mean_of_known(target: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean over the steps that a window's horizon has. (B, H, N) -> (B, N)."""
    unknown_BHN = np.isnan(target)
    mean_BN: NDArray[np.float32] = target.mean(axis=1)
    if unknown_BHN.any():
        mean_BN = np.nanmean(target, axis=1)
    return mean_BN
