"""Random features of a window: with them the closed form may bend where a line does not fit.

A feature is the positive part of a random sum: of the window, seen ever more coarsely the older
it is, and of waves of the time of day. A ridge of many is a kernel ridge, solved as fast as any
other: Rahimi and Recht 2008 (Weighted sums of random kitchen sinks); the kernel is that of Cho and
Saul 2009 (arc-cosine).

Shape legend (this file):
    R  rows     L  seq_len     F  features     C  cells that a window is seen in     W  waves
"""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from model.calendar_inputs import day_waves
from model.config import FEATURE_HARMONICS

SEED = 0
"""The same features in every run, so that runs differ by their data alone."""

CELLS = 16
"""Cells of one width: the newest steps are one each, those before them two, then four."""

WINDOW_SPREAD, WAVE_SPREAD, BIAS_SPREAD = 1.5, 2.0, 0.5
"""Standard deviations of what a random sum gets from a window, a wave, and a constant."""

AT_PENALTY = 1024
"""Number of features whose penalty is that of the window: of more, each costs more, so that the
kernel stays what it is."""


@lru_cache(maxsize=8)
def random_projection(seq_len: int, num_features: int) -> Tensor:
    """Draw what a feature makes of a window, the waves and 1.

    Returns:
        float32 on the CPU, not to be changed. Shape (L + W + 1, F).
    """
    rng = np.random.default_rng(SEED)
    cells_LC = _cells(seq_len)
    window_CF = rng.standard_normal((cells_LC.shape[1], num_features))
    parts = (
        WINDOW_SPREAD / cells_LC.shape[1] ** 0.5 * cells_LC @ window_CF,
        WAVE_SPREAD * rng.standard_normal((2 * FEATURE_HARMONICS, num_features)),
        BIAS_SPREAD * rng.standard_normal((1, num_features)),
    )
    return torch.from_numpy(np.concatenate(parts).astype(np.float32))


def random_features(
    centred: Tensor, projection: Tensor, phase: Tensor | None, reads_waves: Tensor | None = None
) -> Tensor:
    """Make the features of windows; they have a window's scale, so a forecast of them has too.

    Args:
        centred: Windows less what they are centred on. Shape (R, L), floating point.
        projection: As :func:`random_projection` draws it, of the same type and on its device.
        phase: As :func:`model.calendar_inputs.calendar_inputs` takes it; None: without waves.
        reads_waves: Whether a row has waves; None: all have. Shape (R, 1), bool.

    Returns:
        Shape (R, F).
    """
    seq_len = centred.shape[1]
    scale_R1 = centred.std(dim=1, keepdim=True, correction=0)
    # A window that does not move has features of 0, as the window itself is.
    standard_RL = centred / torch.where(scale_R1 > 0, scale_R1, 1)
    sums_RF = torch.addmm(projection[-1], standard_RL, projection[:seq_len])
    if phase is not None:
        waves_RW = torch.cat(day_waves(phase, FEATURE_HARMONICS), dim=1)
        if reads_waves is not None:
            waves_RW = waves_RW * reads_waves
        sums_RF = torch.addmm(sums_RF, waves_RW, projection[seq_len:-1])
    return sums_RF.relu() * scale_R1


def _cells(seq_len: int) -> np.ndarray:
    """Weights of means over cells that widen with age. Shape (L, C)."""
    columns, end, width = [], seq_len, 1
    while end > 0:
        for _ in range(CELLS):
            begin = max(0, end - width)
            column = np.zeros(seq_len)
            column[begin:end] = 1 / (end - begin)
            columns.append(column)
            end = begin
            if end == 0:
                break
        width *= 2
    return np.stack(columns, axis=1)
