"""Errors of forecasts as sums and counts, so that they add up exactly over batches and ranks.

Shape legend (this file):
    B  windows in the batch   H  pred_len
    N  variates               C  channels: every (series, variate) pair of the data set
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dist_train import distributed


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Errors of one forecaster on one split."""

    num_windows: int
    """Windows scored, each exactly once."""

    mse: float
    """Mean squared error of the standardised values."""

    mae: float
    """Mean absolute error of the standardised values."""

    rmse_original: float
    """Root mean squared error in original units, over all variates."""

    mae_original: float
    """Mean absolute error in original units, over all variates."""

    mase: float
    """MAE over the MAE of seasonal naive on the training rows, mean over channels."""

    mse_per_channel: tuple[float, ...]
    """Standardised MSE of each channel."""

    mse_per_step: tuple[float, ...]
    """Standardised MSE of each forecast step that is scored."""


class ErrorSums:
    """Sums of squared and absolute errors per channel and step, in float64."""

    def __init__(self, num_channels: int, pred_len: int) -> None:
        self.squared_CH = torch.zeros(num_channels, pred_len, dtype=torch.float64)
        self.absolute_CH = torch.zeros(num_channels, pred_len, dtype=torch.float64)
        self.count_CH = torch.zeros(num_channels, pred_len, dtype=torch.int64)

    def add(self, forecast: Tensor, target: Tensor, channels: Tensor) -> None:
        """Add the errors of a batch.

        Args:
            forecast: Standardised forecasts. Shape (B, H, N).
            target: Standardised truth, NaN beyond the horizon of its window. Shape (B, H, N).
            channels: Channel of each variate of each window. Shape (B, N), int64.
        """
        assert forecast.shape == target.shape
        error_BHN = forecast.detach().double().cpu() - target.double().cpu()
        error_RH = error_BHN.transpose(1, 2).reshape(-1, error_BHN.shape[1])
        # Of the target, not of the error: a forecast that is not a number must not go unnoticed.
        known_RH = ~target.cpu().transpose(1, 2).reshape(error_RH.shape).isnan()
        error_RH = error_RH.masked_fill(~known_RH, 0)
        channels_R = channels.reshape(-1).cpu()
        self.squared_CH.index_add_(0, channels_R, error_RH.square())
        self.absolute_CH.index_add_(0, channels_R, error_RH.abs())
        self.count_CH.index_add_(0, channels_R, known_RH.long())

    def of_channels(self, part: slice) -> "ErrorSums":
        """The sums of some channels."""
        chosen = ErrorSums(0, self.squared_CH.shape[1])
        chosen.squared_CH, chosen.absolute_CH = self.squared_CH[part], self.absolute_CH[part]
        chosen.count_CH = self.count_CH[part]
        return chosen

    def reduce(self) -> None:
        """Add the sums of all ranks, on all ranks; collective."""
        self.squared_CH = distributed.reduce_sum(self.squared_CH)
        self.absolute_CH = distributed.reduce_sum(self.absolute_CH)
        self.count_CH = distributed.reduce_sum(self.count_CH)

    def mse(self) -> float:
        """Mean squared error over everything added."""
        return float(self.squared_CH.sum()) / self._num_values()

    def scores(self, num_variates: int, scale: np.ndarray, naive_mae: np.ndarray) -> Scores:
        """Turn the sums into scores.

        Args:
            num_variates: Variates per window.
            scale: Original units per standardised unit. Shape (C,).
            naive_mae: MAE of seasonal naive on the training rows, original units; a channel where
                it is 0 is left out of MASE. Shape (C,).
        """
        scale_C = torch.from_numpy(np.asarray(scale, dtype=np.float64))
        naive_C = torch.from_numpy(np.asarray(naive_mae, dtype=np.float64))
        values = self._num_values()
        per_channel_C = self.count_CH.sum(1).clamp(min=1).double()
        per_step_H = self.count_CH.sum(0)
        steps = int((per_step_H > 0).sum())  # of a source with a shorter horizon, the first ones
        mae_C = self.absolute_CH.sum(1) * scale_C / per_channel_C
        rated = (naive_C > 0) & (self.count_CH[:, 0] > 0)
        return Scores(
            num_windows=int(per_step_H[0]) // num_variates,
            mse=self.mse(),
            mae=float(self.absolute_CH.sum()) / values,
            rmse_original=(float((self.squared_CH.sum(1) * scale_C**2).sum()) / values) ** 0.5,
            mae_original=float((self.absolute_CH.sum(1) * scale_C).sum()) / values,
            mase=float((mae_C[rated] / naive_C[rated]).mean()) if rated.any() else float("nan"),
            mse_per_channel=tuple((self.squared_CH.sum(1) / per_channel_C).tolist()),
            mse_per_step=tuple((self.squared_CH.sum(0) / per_step_H)[:steps].tolist()),
        )

    def _num_values(self) -> int:
        return int(self.count_CH.sum())
