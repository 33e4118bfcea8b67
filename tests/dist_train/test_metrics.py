"""dist_train/metrics.py: sums that give the plain means, however they are added up."""

import numpy as np
import pytest
import torch

from dist_train.metrics import ErrorSums

PRED_LEN, VARIATES, WINDOWS = 3, 2, 11


def sums_of(forecast: torch.Tensor, target: torch.Tensor, batch: int) -> ErrorSums:
    sums = ErrorSums(VARIATES, PRED_LEN)
    for first in range(0, WINDOWS, batch):
        part = slice(first, first + batch)
        channels = torch.arange(VARIATES).expand(len(forecast[part]), -1)
        sums.add(forecast[part], target[part], channels)
    return sums


@pytest.mark.parametrize("batch", [1, 4, 11])
def test_scores_equal_numpy_means_whatever_the_batch(batch: int):
    rng = torch.Generator().manual_seed(0)
    forecast = torch.randn(WINDOWS, PRED_LEN, VARIATES, generator=rng)
    target = torch.randn(WINDOWS, PRED_LEN, VARIATES, generator=rng)
    scale, naive = np.array([2.0, 5.0]), np.array([0.5, 0.0])

    scores = sums_of(forecast, target, batch).scores(VARIATES, scale, naive)

    error = (forecast.double() - target.double()).numpy()
    original = error * scale
    assert scores.num_windows == WINDOWS
    assert scores.mse == pytest.approx((error**2).mean(), rel=1e-12)
    assert scores.mae == pytest.approx(np.abs(error).mean(), rel=1e-12)
    assert scores.rmse_original == pytest.approx(np.sqrt((original**2).mean()), rel=1e-12)
    assert scores.mae_original == pytest.approx(np.abs(original).mean(), rel=1e-12)
    # The second channel never changed in training: it cannot be rated by MASE.
    assert scores.mase == pytest.approx(np.abs(original[..., 0]).mean() / 0.5, rel=1e-12)
    assert scores.mse_per_channel == pytest.approx((error**2).mean(axis=(0, 1)), rel=1e-12)
    assert scores.mse_per_step == pytest.approx((error**2).mean(axis=(0, 2)), rel=1e-12)


def test_large_sums_do_not_lose_small_errors():
    sums = ErrorSums(1, 1)
    one, zero = torch.ones(1, 1, 1), torch.zeros(1, 1, 1)
    sums.add(one * 4096, zero, torch.zeros(1, 1, dtype=torch.int64))  # 2**24: float32 would stall
    for _ in range(8):
        sums.add(one, zero, torch.zeros(1, 1, dtype=torch.int64))
    assert sums.mse() == (4096**2 + 8) / 9
