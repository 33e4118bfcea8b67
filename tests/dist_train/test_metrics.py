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


def test_a_shorter_horizon_is_scored_over_its_own_steps():
    rng = torch.Generator().manual_seed(0)
    forecast = torch.randn(WINDOWS, PRED_LEN, 1, generator=rng)
    target = torch.randn(WINDOWS, PRED_LEN, 1, generator=rng)
    target[5:, 2:] = float("nan")
    channels = (torch.arange(WINDOWS) >= 5).long()[:, None]
    sums = ErrorSums(2, PRED_LEN)
    sums.add(forecast, target, channels)
    squared = (forecast.double() - target.double()).square().numpy()
    whole = sums.scores(1, np.ones(2), np.ones(2))
    assert whole.num_windows == WINDOWS
    assert whole.mse == pytest.approx(np.nanmean(squared))
    assert whole.mse_per_step == pytest.approx(np.nanmean(squared, axis=(0, 2)))
    short = sums.of_channels(slice(1, 2)).scores(1, np.ones(1), np.ones(1))
    assert short.mse == pytest.approx(squared[5:, :2].mean())
    assert short.mse_per_channel == pytest.approx([squared[5:, :2].mean()])
    assert short.mse_per_step == pytest.approx(squared[5:, :2].mean(axis=(0, 2)))
    assert short.mase == pytest.approx(np.sqrt(squared[5:, :2]).mean())


def test_a_forecast_that_is_no_number_is_not_left_out():
    sums = ErrorSums(1, 2)
    zero = torch.zeros(1, 1, dtype=torch.int64)
    sums.add(torch.tensor([[[float("nan")], [1.0]]]), torch.zeros(1, 2, 1), zero)
    assert np.isnan(sums.mse())
