"""How often the truth lies within the intervals, and how wide they are; exact on any ranks.

Shape legend (this file):
    V  windows of a batch   H  pred_len   N  variates   C  channels   K  levels
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dist_train import distributed
from dist_train.conformal import Calibration
from dist_train.data.collate import WindowBatch
from dist_train.data.windows import ForecastData

TOLD_LEVELS = (80.0, 95.0)
"""Percentages told beside every table of scores."""

DRAWN_LEVELS = (20.0, 40.0, 60.0, 80.0, 90.0, 95.0, 99.0)
"""Percentages whose coverage is measured."""


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """What the intervals of one level are worth on one split, over all its windows."""

    level: float
    """What they promise, in percent."""

    covered: float
    """Share of the truth within, in percent, over windows, steps and variates."""

    width: float
    """Mean width, standardised."""

    interval_score: float
    """Width, and what lies outside times 2 / (1 - level): the less the better. Standardised.

    Source: Gneiting and Raftery 2007, "Strictly proper scoring rules", section 6.2.
    """

    per_channel: tuple[float, ...]
    """Share within of each channel, in percent."""

    per_step: tuple[float, ...]
    """Share within of each forecast step, in percent."""


class CoverageSums:
    """Counts of what lies within; an observer of :func:`dist_train.evaluation.score_split`."""

    def __init__(self, calibration: Calibration, data: ForecastData, split: str) -> None:
        """Begin to count, at those of :data:`DRAWN_LEVELS` that validation supports.

        Args:
            calibration: Makes the intervals.
            data: The series.
            split: Where the windows come from.
        """
        self._calibration, self._data, self._split = calibration, data, split
        self.levels = calibration.supported(DRAWN_LEVELS)
        shape = len(self.levels), data.num_channels, data.windows[split].pred_len
        self.within_KCH = torch.zeros(shape, dtype=torch.int64)
        self.width_K = torch.zeros(shape[0], dtype=torch.float64)
        self.outside_K = torch.zeros(shape[0], dtype=torch.float64)
        self.count_CH = torch.zeros(shape[1:], dtype=torch.int64)

    def __call__(self, batch: WindowBatch, forecast: Tensor) -> None:
        """Count a batch; the forecasts are those of its valid windows. (V, H, N)."""
        valid = len(forecast)
        channels_VN = self._data.channels_of(batch.window_ids[:valid].cpu().numpy(), self._split)
        rows = torch.from_numpy(channels_VN.reshape(-1))
        target = batch.target[:valid].cpu().double().numpy()
        known_VHN = ~np.isnan(target)
        known_RH = torch.from_numpy(known_VHN).transpose(1, 2).reshape(len(rows), -1)
        self.count_CH.index_add_(0, rows, known_RH.long())
        intervals = self._calibration.intervals(
            batch, forecast, self._data, self._split, self.levels
        )
        for number, (_, lower, upper) in enumerate(intervals):
            within_VHN = torch.from_numpy((target >= lower) & (target <= upper))
            within_RH = within_VHN.transpose(1, 2).reshape(len(rows), -1).long()
            self.within_KCH[number].index_add_(0, rows, within_RH)
            outside = np.maximum(lower - target, 0) + np.maximum(target - upper, 0)
            self.width_K[number] += float((upper - lower).sum(where=known_VHN))
            self.outside_K[number] += float(outside.sum(where=known_VHN))

    def finish(self) -> tuple[Coverage, ...]:
        """Add up all ranks, on all ranks; collective. Ascending in level."""
        for name in ("within_KCH", "width_K", "outside_K", "count_CH"):
            setattr(self, name, distributed.reduce_sum(getattr(self, name)))
        values, per_step_H = int(self.count_CH.sum()), self.count_CH.sum(0)
        per_channel_C = self.count_CH.sum(1).clamp(min=1).double()
        return tuple(
            Coverage(
                level=level,
                covered=100 * int(within_CH.sum()) / values,
                width=float(width) / values,
                interval_score=float(width + outside * 200 / (100 - level)) / values,
                per_channel=tuple((100 * within_CH.sum(1) / per_channel_C).tolist()),
                per_step=tuple((100 * within_CH.sum(0).double() / per_step_H).tolist()),
            )
            for level, within_CH, width, outside in zip(
                self.levels, self.within_KCH, self.width_K, self.outside_K, strict=True
            )
        )


def told(measured: Sequence[Coverage]) -> list[Coverage]:
    """Those of the levels that are told beside every table."""
    return [one for one in measured if one.level in TOLD_LEVELS]


def summary(measured: Sequence[Coverage]) -> dict[str, Any]:
    """Coverage by level for the result: ``coverage_80`` and so on, in percent."""
    return {f"coverage_{one.level:g}": round(one.covered, 2) for one in told(measured)}


def table(measured: Sequence[Coverage], split: str) -> str:
    """Lay out what the intervals are worth as a Markdown table; empty where there are none."""
    rows = told(measured)
    if not rows:
        return ""
    lines = [
        f"| interval | covers on {split} | worst variate | worst step | width | interval score |",
        "|---|---|---|---|---|---|",
    ]
    for one in rows:
        worst_variate, worst_step = (
            max(shares, key=lambda share: abs(share - one.level))
            for shares in (one.per_channel, one.per_step)
        )
        lines.append(
            f"| {one.level:g} % | {one.covered:.1f} % | {worst_variate:.1f} % | "
            f"{worst_step:.1f} % | {one.width:.4f} | {one.interval_score:.4f} |"
        )
    return "\n".join(lines)
