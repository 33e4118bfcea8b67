"""The lags at which a window repeats itself, for the prompt.

Shape legend (this file):
    R  rows     L  time steps     F  lags 1 to L // 2     K  lags wanted
"""

from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

NO_LAG = -1


def top_lags(
    rows: npt.NDArray[np.floating], k: int, mode: Literal["peaks", "fft_raw"]
) -> npt.NDArray[np.int64]:
    """Find the lags of largest circular autocorrelation.

    Args:
        rows: Windows. Shape (R, L).
        k: Lags wanted per row.
        mode: peaks: local maxima among the lags 1 to L // 2 of the row minus its mean (a lag
            L - k says the same as k); fft_raw: the plain largest values, as Time-LLM takes them,
            lag 0 and mirrored lags included.

    Returns:
        Lags, strongest first, :data:`NO_LAG` where a row has fewer. Shape (R, K).

    Raises:
        ValueError: ``rows`` is not 2-D, or k is more than a row has steps under fft_raw.

    Source: Time-LLM, Jin et al. 2024 (arXiv:2310.01728), ``calcute_lags``; the mode peaks is
        ours, because 90 % of ETTh1 windows give 0, 1, 2 and their mirror images otherwise.
    """
    if rows.ndim != 2:
        raise ValueError(f"rows must be (R, L), got shape {rows.shape}.")
    if mode == "fft_raw":
        return _raw_lags(rows, k)
    length = rows.shape[1]
    lags_RK = np.full((len(rows), k), NO_LAG, dtype=np.int64)
    if length < 4:
        return lags_RK
    centred_RL = rows.astype(np.float64) - rows.mean(axis=1, keepdims=True, dtype=np.float64)
    power_RL = np.abs(np.fft.rfft(centred_RL, axis=1)) ** 2
    corr_RL = np.fft.irfft(power_RL, n=length, axis=1)
    corr_RL = corr_RL / np.maximum(corr_RL[:, :1], np.finfo(np.float64).tiny)
    # Equally strong lags (24, 48, 72 of a clean daily cycle) differ by rounding alone: rounding
    # more makes the smaller one come first, on every machine.
    corr_RF = np.round(corr_RL[:, 1 : length // 2 + 1], 6)
    left_RF = np.concatenate([np.ones((len(rows), 1)), corr_RF[:, :-1]], axis=1)
    # Beyond the last lag the mirror image begins, which is never higher than its neighbour here.
    right_RF = np.concatenate([corr_RF[:, 1:], corr_RF[:, -1:]], axis=1)
    strength_RF = np.where((corr_RF > left_RF) & (corr_RF >= right_RF), corr_RF, -np.inf)
    order_RK = np.argsort(-strength_RF, axis=1, kind="stable")[:, :k]
    found_RK = np.take_along_axis(strength_RF, order_RK, axis=1) > -np.inf
    lags_RK[:, : order_RK.shape[1]] = np.where(found_RK, order_RK + 1, NO_LAG)
    return lags_RK


def _raw_lags(rows: npt.NDArray[np.floating], k: int) -> npt.NDArray[np.int64]:
    if k > rows.shape[1]:
        raise ValueError(
            f"model.num_prompt_lags={k} is more than the data.seq_len={rows.shape[1]} steps of a "
            "window: lower it."
        )
    spectrum = torch.fft.rfft(torch.from_numpy(np.ascontiguousarray(rows)), dim=-1)
    corr_RL = torch.fft.irfft(spectrum * spectrum.conj(), n=rows.shape[1], dim=-1)
    lags: npt.NDArray[np.int64] = corr_RL.topk(k, dim=-1).indices.numpy()
    return lags
