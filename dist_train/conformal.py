"""Intervals around forecasts, as wide as the errors on validation windows say.

Split conformal prediction: the errors of held-out windows, each divided by what its window suggests
as their size, are ranked for every channel and step; a bound of a new forecast is one of those
ranks, times the size that the new window suggests. Where the windows to come are exchangeable with
those of validation, an interval of level 80 covers at least 80 % of them. Time series are not
quite: what is really covered is measured on test and told beside every interval.

Shape legend (this file):
    W  validation windows   B  windows    L  seq_len    H  pred_len   V  windows of a batch
    N  variates             C  channels   G  levels, or 1 where channels share their ranks
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dist_train.data.collate import WindowBatch
from dist_train.data.windows import ForecastData
from model.instance_norm import VARIANCE_FLOOR

Floats = npt.NDArray[np.floating]
Ints = npt.NDArray[np.int64]

FORMAT = 1
LEVELS = (
    0.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 75.0, 80.0, 85.0, 90.0, 92.0, 94.0, 95.0, 96.0,
    97.0, 98.0, 99.0, 99.5, 99.8, 99.9,
)  # fmt: skip
"""Percentages whose ranks are kept; between two of them the bounds are interpolated."""

MIN_WINDOWS = 100
"""Fewer windows of a channel than this, and all channels of its source share their ranks."""

FLOOR = 0.5
"""A window's spread counts as no smaller than about this share of its channel's median spread.

Chosen on earlier folds of three data sets, see EXPERIMENTS.md of 2026-11-28.
"""


@dataclass(frozen=True, kw_only=True, eq=False)
class Calibration:
    """What validation windows say about the errors of a forecaster."""

    levels: tuple[float, ...]
    """Percentages that bounds are kept for, ascending from 0; no higher one can be had."""

    lower: Floats
    """Lower bound minus forecast, in spreads; NaN beyond the horizon of what it is of. Shape
    (levels, G, H), float32."""

    upper: Floats
    """Upper bound minus forecast, in spreads, likewise. Shape (levels, G, H), float32."""

    floor: Floats
    """What is added to the spread of a window, in squares. Shape (C,), float32, standardised."""

    num_windows: int
    """Validation windows it was made from."""

    facts: Mapping[str, Any]
    """Where it comes from, as plain JSON values: method, split, windows there were, data, model."""

    groups: Ints | None = None
    """Which of the G bounds serve each channel, shape (C,); None: one serves all, or each its own,
    in the order of the channels."""

    @property
    def num_channels(self) -> int:
        """C."""
        return len(self.floor)

    @property
    def shares_ranks(self) -> bool:
        """Whether one set of ranks serves all channels, for each has too few windows."""
        return self.lower.shape[1] == 1 and self.num_channels > 1

    def bounds_of_channels(self, channels: Ints) -> Ints:
        """Number of the bounds that serve some channels. Shape (...) in and out."""
        if self.groups is not None:
            own: Ints = self.groups[channels]
            return own
        return np.zeros_like(channels) if self.shares_ranks else channels

    def interval(
        self, forecast: Floats, context: Floats, channels: Ints, level: float
    ) -> tuple[Floats, Floats]:
        """Bound forecasts so that about ``level`` percent of the truth lie within.

        Args:
            forecast: Standardised. Shape (B, H, N).
            context: The windows that they continue, standardised. Shape (B, L, N).
            channels: Channel of each variate of each window, as
                :meth:`~dist_train.data.windows.ForecastData.channels_of` says it. Shape (B, N).
            level: Percentage, whole or not.

        Returns:
            Lower and upper bounds, standardised. Shape (B, H, N) each, float64. Scaling back to
            original units is that of forecasts: it is increasing, so bounds stay bounds.

        Raises:
            ValueError: The level is no percentage, or validation has too few windows for it.
        """
        spread_BN = window_spread(context, self.floor[channels])
        return self._bounds(forecast, spread_BN, channels, level)

    def intervals(
        self,
        batch: WindowBatch,
        forecast: Tensor,
        data: ForecastData,
        split: str,
        levels: Sequence[float],
    ) -> Iterator[tuple[float, Floats, Floats]]:
        """Bound the forecasts of a batch at several levels, one after the other.

        Args:
            batch: Windows of ``data.windows[split]``.
            forecast: Of the first V of them, standardised. Shape (V, H, N).
            data: The series.
            split: Where the windows come from.
            levels: Percentages; those that validation does not support are left out.

        Yields:
            Level, lower and upper bounds, standardised. Shape (V, H, N) each, float64.
        """
        valid = len(forecast)
        centre_VHN = forecast.detach().double().cpu().numpy()
        channels_VN = data.channels_of(batch.window_ids[:valid].cpu().numpy(), split)
        spread_VN = window_spread(batch.context[:valid].cpu().numpy(), self.floor[channels_VN])
        for level in self.supported(levels):
            lower_VHN, upper_VHN = self._bounds(centre_VHN, spread_VN, channels_VN, level)
            yield level, lower_VHN, upper_VHN

    def _bounds(
        self, forecast: Floats, spread: Floats, channels: Ints, level: float
    ) -> tuple[Floats, Floats]:
        """As :meth:`interval`, for windows whose spread (B, N) is known already."""
        rows_BN = self.bounds_of_channels(channels)
        lower_BHN, upper_BHN = (
            forecast + np.swapaxes(offset_GH[rows_BN], 1, 2) * spread[:, None]
            for offset_GH in self.offsets(level)
        )
        return lower_BHN, upper_BHN

    def offsets(self, level: float) -> tuple[Floats, Floats]:
        """Bounds minus forecast in spreads, float64. Shape (G, H) each.

        Raises:
            ValueError: As :meth:`interval`.
        """
        self.check_level(level)
        right = int(np.searchsorted(self.levels, level))
        left = right if self.levels[right] == level else right - 1
        width = self.levels[right] - self.levels[left]
        share = (level - self.levels[left]) / width if width else 0.0
        lower, upper = (
            (1 - share) * bound[left].astype(np.float64) + share * bound[right].astype(np.float64)
            for bound in (self.lower, self.upper)
        )
        return lower, upper

    def supported(self, levels: Sequence[float]) -> list[float]:
        """Those of some percentages that validation has enough windows for."""
        return [level for level in levels if level <= self.levels[-1]]

    def check_level(self, level: float) -> None:
        """Refuse a level that there is no interval for.

        Raises:
            ValueError: It is no percentage, or validation has too few windows for it.
        """
        # Numbers of numpy are real ones too.
        if isinstance(level, bool) or not isinstance(level, Real) or not 0 < level < 100:
            raise ValueError(
                f"level={level!r}: an interval's level is a percentage above 0 and below 100, such "
                "as 80 or 95."
            )
        if level > self.levels[-1]:
            raise ValueError(
                f"level={level:g}: {self.num_windows} validation windows bound no more than "
                f"{self.levels[-1]:g} %; ask for that, or train with a larger validation split."
            )

    def to_tensors(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Pack it for a safetensors file: tensors, and the facts beside them as JSON values."""
        tensors = {
            name: torch.from_numpy(np.ascontiguousarray(getattr(self, name), dtype=np.float32))
            for name in ("lower", "upper", "floor")
        }
        if self.groups is not None:
            tensors["groups"] = torch.from_numpy(self.groups.astype(np.int64))
        own = {"format": FORMAT, "levels": list(self.levels), "num_windows": self.num_windows}
        return tensors, {**self.facts, **own}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> "Calibration":
        """Undo :meth:`to_tensors`.

        Raises:
            ValueError: They are of another format, or do not belong together.
        """
        if facts.get("format") != FORMAT:
            raise ValueError(f"calibration format {facts.get('format')}, this code reads {FORMAT}.")
        lower, upper, floor = (tensors[name].numpy() for name in ("lower", "upper", "floor"))
        levels = tuple(float(level) for level in facts["levels"])
        groups = tensors["groups"].numpy() if "groups" in tensors else None
        fits = lower.ndim == 3 and lower.shape == upper.shape and floor.ndim == 1
        if fits and groups is None:
            fits = lower.shape[1] in (1, len(floor))
        elif fits and groups is not None:
            inside = (groups >= 0) & (groups < lower.shape[1])
            fits = groups.shape == floor.shape and bool(inside.all())
        if not fits or lower.shape[0] != len(levels):
            raise ValueError(
                f"calibration of {len(levels)} levels with bounds {lower.shape} and "
                f"{upper.shape} and floor {floor.shape}: these do not belong together."
            )
        own = ("format", "levels", "num_windows")
        return cls(
            levels=levels, lower=lower, upper=upper, floor=floor,
            num_windows=int(facts["num_windows"]),
            facts={key: value for key, value in facts.items() if key not in own},
            groups=groups,
        )  # fmt: skip


def window_spread(context: Floats, floor: Floats) -> Floats:
    """Say how large the errors of a forecast are likely to be, from what it continues.

    Args:
        context: Standardised. Shape (B, L, N).
        floor: Of the channel of each variate. Shape (B, N).

    Returns:
        The standard deviation over L, with the floor added in squares. Shape (B, N), float64.
    """
    variance_BN = np.var(context, axis=1, dtype=np.float64)
    spread_BN: Floats = np.sqrt(variance_BN + np.square(floor, dtype=np.float64))
    return spread_BN


def channel_floor(variance: Floats) -> Floats:
    """Floor of the spread of each channel, which a window without variance would lack.

    Args:
        variance: Of the windows of one channel. Shape (W, ...).

    Returns:
        Shape (...), float32.
    """
    typical = np.median(variance, axis=0)
    floor: Floats = np.sqrt(FLOOR**2 * typical + VARIANCE_FLOOR).astype(np.float32)
    return floor


def supported_levels(num_windows: int) -> tuple[float, ...]:
    """Those of :data:`LEVELS` that so many windows can bound on both sides."""
    return tuple(level for level in LEVELS if _ranks(num_windows, level)[1] <= num_windows)


def bounds_of(scores: Floats, levels: Sequence[float]) -> tuple[Floats, Floats]:
    """Rank the errors of windows.

    Args:
        scores: Truth minus forecast, in spreads; NaN where a window's horizon is shorter. Shape
            (W, ...).
        levels: Percentages that so many windows support, or so many as a step has.

    Returns:
        Lower and upper bounds, NaN for a step with too few windows. Shape (levels, ...) each, in
        the type of ``scores``.

    Source: Romano, Patterson and Candes 2019 (arXiv:1905.03222): each tail has its own rank.
    """
    ordered = np.sort(scores, axis=0)  # NaN comes last
    counts = np.count_nonzero(~np.isnan(scores), axis=0)
    lower, upper = np.full((2, len(levels), *counts.shape), np.nan, dtype=scores.dtype)
    for count in np.unique(counts):
        of_count = counts == count
        for number, level in enumerate(levels):
            low, high = _ranks(int(count), level)
            if high <= count:
                lower[number, of_count] = ordered[low - 1, of_count]
                upper[number, of_count] = ordered[high - 1, of_count]
    return lower, upper


def _ranks(num_windows: int, level: float) -> tuple[int, int]:
    """Ranks, from 1, of the errors that bound a level; 0 and W + 1 where there are too few.

    One more error than there are is ranked: that of the window to come.
    """
    share = round((100 - level) / 200, 12)  # in each tail
    high = int(np.ceil(round((num_windows + 1) * (1 - share), 9)))
    return num_windows + 1 - high, high
