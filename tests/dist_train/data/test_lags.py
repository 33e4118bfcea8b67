"""dist_train/data/lags.py: the lags against a loop over every lag, and Time-LLM's own lines."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_train.data.lags import NO_LAG, top_lags


def lags_by_loop(row: np.ndarray, k: int) -> list[int]:
    """The slow, obvious peaks of the circular autocorrelation."""
    row = row - row.mean()
    length = len(row)
    corr = [sum(row[t] * row[(t + lag) % length] for t in range(length)) for lag in range(length)]
    corr = [round(value / corr[0], 6) for value in corr]
    last = length // 2
    peaks = [
        lag
        for lag in range(1, last + 1)
        if corr[lag] > corr[lag - 1] and (lag == last or corr[lag] >= corr[lag + 1])
    ]
    best = sorted(peaks, key=lambda lag: (-corr[lag], lag))[:k]
    return best + [NO_LAG] * (k - len(best))


@settings(max_examples=40, deadline=None)
@given(st.integers(4, 41), st.integers(1, 6), st.integers(0, 10_000))
def test_peaks_equal_the_obvious_loop(length: int, k: int, seed: int):
    rows = np.random.default_rng(seed).normal(size=(3, length)).astype(np.float32)
    got = top_lags(rows, k, "peaks")
    assert got.tolist() == [lags_by_loop(row.astype(np.float64), k) for row in rows]


def test_a_daily_cycle_gives_its_multiples_in_order():
    hours = np.arange(240)
    row = np.sin(2 * np.pi * hours / 24) + 5
    assert top_lags(row[None], 5, "peaks").tolist() == [[24, 48, 72, 96, 120]]


def test_no_lag_is_zero_or_mirrored():
    rows = np.random.default_rng(0).normal(size=(50, 96)).cumsum(axis=1)
    lags = top_lags(rows, 20, "peaks")
    assert ((lags == NO_LAG) | ((lags >= 2) & (lags <= 48))).all()
    assert (lags == NO_LAG).any(), "a random walk has few peaks; the rest is empty"


@pytest.mark.parametrize("row", [np.full(63, 0.1), np.zeros(64), np.arange(3.0)])
def test_a_row_that_does_not_repeat_has_none(row: np.ndarray):
    assert top_lags(row[None], 3, "peaks").tolist() == [[NO_LAG] * 3]


def test_fft_raw_is_what_time_llm_computes():
    rows = np.random.default_rng(0).normal(size=(4, 96)).astype(np.float32)
    x = torch.from_numpy(rows)
    q_fft = torch.fft.rfft(x, dim=-1)
    corr = torch.fft.irfft(q_fft * torch.conj(q_fft), dim=-1)
    _, expected = torch.topk(corr, 5, dim=-1)
    got = top_lags(rows, 5, "fft_raw")
    assert got.tolist() == expected.tolist()
    assert (got[:, 0] == 0).all()


def test_impossible_requests_are_refused():
    with pytest.raises(ValueError, match=r"rows must be \(R, L\), got shape \(8,\)"):
        top_lags(np.zeros(8), 2, "peaks")
    with pytest.raises(ValueError, match=r"model.num_prompt_lags=9 is more than .*seq_len=8"):
        top_lags(np.zeros((1, 8)), 9, "fft_raw")
