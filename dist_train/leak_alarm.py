"""The alarm for a memory that shows a window its own future.

Retrieval that is much better on training windows than on validation windows has either seen the
answer or meets drifting data. The audit of ranges tells which.
"""

from dataclasses import dataclass

import numpy as np
import torch

from dist_train import distributed, progress
from dist_train.data.collate import Collator
from dist_train.retrieval import Retriever
from model.horizons import fill_unknown

NUM_WINDOWS = 256
MIN_WINDOWS = 8
MAX_ROWS = 1024  # with hundreds of variates, fewer windows
ALARM_RATIO = 0.5  # the measured ratio is near 1 with the exclusion and near 0.13 without it


class LeakError(RuntimeError):
    """A training window retrieved an entry that overlaps it in time."""


@dataclass(frozen=True, kw_only=True)
class LeakReport:
    """How good retrieval alone is, and what the audit found."""

    train_ratio: float
    """Retrieval-only MSE over repeat-last MSE on training windows."""

    val_ratio: float
    """The same on validation windows."""

    alarm: bool
    """Whether train's ratio is under half of validation's."""

    overlaps: int
    """Retrieved training neighbours that overlap their query; 0 where there was no alarm."""


def check_for_leaks(retriever: Retriever) -> LeakReport:
    """Compare retrieval on even samples of training and validation windows; collective.

    Returns:
        The report, equal on every rank.

    Raises:
        LeakError: A neighbour overlaps its query, and ``gram.leak_alarm`` is stop.
    """
    train_ratio, overlaps = _measure(retriever, "train")
    val_ratio, _ = _measure(retriever, "val")
    alarm = train_ratio < ALARM_RATIO * val_ratio
    report = LeakReport(
        train_ratio=train_ratio,
        val_ratio=val_ratio,
        alarm=alarm,
        overlaps=overlaps if alarm else 0,
    )
    if report.overlaps and retriever.gram.leak_alarm == "stop":
        raise LeakError(message(report))
    return report


def message(report: LeakReport) -> str:
    """Say what the alarm means, in one line."""
    ratios = (
        f"retrieval alone has {report.train_ratio:.2f} of repeat-last's error on training windows "
        f"and {report.val_ratio:.2f} on validation windows"
    )
    if not report.alarm:
        return ratios
    if report.overlaps:
        return (
            f"leak: {ratios}, and {report.overlaps} retrieved entries overlap their query in time, "
            "so the memory shows the model its own answers. This is a fault of the exclusion, "
            "not of the data; gram.leak_alarm=warn goes on nevertheless."
        )
    return f"warning: {ratios}; no retrieved entry overlaps its query, so the series drift."


def _measure(retriever: Retriever, split: str) -> tuple[float, int]:
    """Return the ratio on a sample of a split, and how many neighbours overlap; collective."""
    progress.enter(f"leak alarm, {split}")
    windows = retriever.data.windows[split]
    limit = min(NUM_WINDOWS, max(MIN_WINDOWS, MAX_ROWS // windows.num_variates))
    ids = windows.even_sample(limit)
    mine = ids[distributed.rank() :: distributed.world_size()]
    sums = torch.zeros(3, dtype=torch.float64)
    # A rank without a window searches too: the search is collective.
    batch = Collator(windows, None)([int(number) for number in mine])
    neighbours = retriever.search_batch(batch, split)
    forecast = retriever.forecast_from(batch, neighbours)
    last = batch.context[:, -1:].expand_as(forecast)
    for number, one in enumerate((forecast, last)):
        sums[number] = (one - fill_unknown(batch.target, one)).double().square().sum()
    sums[2] = _count_overlaps(retriever, batch.window_ids.numpy(), split, neighbours.ids)
    sums = distributed.reduce_sum(sums)
    return float(sums[0] / sums[1].clamp_min(1e-12)), int(sums[2])


def _count_overlaps(
    retriever: Retriever, window_ids: np.ndarray, split: str, ids: torch.Tensor
) -> int:
    """Compare the ranges themselves, not through the exclusion that is on trial."""
    series, starts = retriever.data.windows[split].locate_batch(window_ids)
    per_row = retriever.data.windows[split].num_variates
    series_R, starts_R = (torch.from_numpy(np.repeat(part, per_row)) for part in (series, starts))
    return int(retriever.bank.overlaps(series_R, starts_R, ids).sum())
