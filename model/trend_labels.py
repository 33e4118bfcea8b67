"""TAPR-C2F labels: where the horizon goes, cut into classes by four thresholds.

Shape legend (this file):
    R  rows       H  pred_len
    t1 < t2 < t3 < t4  thresholds of the change, in normalised units; m the middle of [t2, t3]
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from model.float32_buffers import KeepsBufferPrecision
from model.horizons import stretch

# SPEC 1.1; the start of learnable thresholds that were never fitted.
SPEC_THRESHOLDS = (-0.02, -0.005, 0.005, 0.02)
QUANTILES = (0.15, 0.40, 0.60, 0.85)

# Width of the soft edge between two classes, in normalised units (a window's scale is 1).
SOFT_LABEL_TEMPERATURE = 0.05


class TrendLabels(NamedTuple):
    """What the horizon really did."""

    change: Tensor
    """Mean of the normalised future minus the last normalised value. Shape (R,), float32."""

    direction: Tensor
    """0 down, 1 flat, 2 up. Shape (R,), int64."""

    magnitude: Tensor
    """0 strong down, 1 weak down, 2 weak up, 3 strong up. Shape (R,), int64."""

    soft_direction: Tensor | None = None
    """Class probabilities, with learnable thresholds only. Shape (R, 3), float32."""

    soft_magnitude: Tensor | None = None
    """Class probabilities, with learnable thresholds only. Shape (R, 4), float32."""


def trend_labels(future: Tensor, last: Tensor, thresholds: Tensor) -> TrendLabels:
    """Label each row by how its horizon lies to its last value.

    Args:
        future: Next H steps, normalised by their own window; NaN beyond its horizon, and without a
            part in the mean there. Shape (R, H).
        last: Last value of the window, normalised alike. Shape (R,).
        thresholds: Ascending. Shape (4,), float32.

    Returns:
        Change, direction and magnitude; a change on t2, t3 or t4 counts as the class inside.

    Raises:
        ValueError: The shapes do not fit.

    Source: SPEC 1.1, paragraph "Labels".
    """
    if future.ndim != 2 or last.shape != future.shape[:1]:
        raise ValueError(
            "trend labels need future (R, H) and last (R,), got shapes "
            f"{tuple(future.shape)} and {tuple(last.shape)}."
        )
    known = future.float()
    mean_R1 = known.masked_fill(known.isnan(), 0).mean(dim=1, keepdim=True) * stretch(known)
    change_R = mean_R1[:, 0] - last.float()
    t1, t2, t3, t4 = thresholds.detach().float()
    middle = (t2 + t3) / 2
    down_or_more = (change_R >= t2).long() + (change_R > t3).long()
    strong_or_more = (change_R >= t1).long() + (change_R >= middle).long() + (change_R > t4).long()
    return TrendLabels(change=change_R, direction=down_or_more, magnitude=strong_or_more)


def soft_trend_labels(
    change: Tensor, thresholds: Tensor, temperature: float = SOFT_LABEL_TEMPERATURE
) -> tuple[Tensor, Tensor]:
    """Give each class the share that a soft edge leaves it, differentiable in the thresholds.

    Args:
        change: Shape (R,), float32.
        thresholds: Ascending. Shape (4,), float32.
        temperature: Width of an edge, in the unit of ``change``; towards 0 the labels harden.

    Returns:
        ``(direction, magnitude)`` probabilities. Shapes (R, 3) and (R, 4), rows sum to 1.
    """
    t1, t2, t3, t4 = thresholds
    edges_2, edges_3 = torch.stack([t2, t3]), torch.stack([t1, (t2 + t3) / 2, t4])
    return _between(change, edges_2, temperature), _between(change, edges_3, temperature)


def _between(change: Tensor, edges: Tensor, temperature: float) -> Tensor:
    """Differences of sigmoids: the share below the first edge, between edges, above the last."""
    above = ((change[:, None] - edges) / temperature).sigmoid()
    ones, zeros = torch.ones_like(above[:, :1]), torch.zeros_like(above[:, :1])
    return torch.cat([ones, above], dim=1) - torch.cat([above, zeros], dim=1)


def quantile_thresholds(changes: Tensor) -> Tensor:
    """Take the 15/40/60/85 % quantiles of the changes of the training split.

    Sorts instead of calling ``torch.quantile``, which refuses more than 16 million values.

    Args:
        changes: Changes of training windows, all of them or an even sample. Shape (n,).

    Returns:
        Thresholds, ascending; equal where the changes are. Shape (4,), float32.

    Raises:
        ValueError: There is no change, or one is not finite.
    """
    if changes.numel() == 0 or not changes.isfinite().all():
        raise ValueError(
            f"tapr.trend_thresholds=quantile needs finite training changes, got "
            f"{int(changes.isfinite().sum())} finite of {changes.numel()}: check the training "
            "split, or give four numbers."
        )
    ordered = changes.flatten().double().sort().values
    ranks = torch.tensor(QUANTILES, dtype=torch.float64, device=changes.device)
    ranks = ranks * (ordered.numel() - 1)
    below, above = ordered[ranks.floor().long()], ordered[ranks.ceil().long()]
    return torch.lerp(below, above, ranks.frac()).float()


class TrendThresholds(KeepsBufferPrecision):
    """The four thresholds: fixed, fitted once to the training split, or learned.

    Fixed and fitted ones are a buffer that stays float32 whatever the module is cast to: in
    bfloat16 0.005 would move by up to 0.4 %, and labels with it. They travel in the state dict.
    """

    values: Tensor
    fitted: Tensor

    def __init__(self, kind: str | Sequence[float]) -> None:
        """Prepare.

        Args:
            kind: ``tapr.trend_thresholds``: quantile, learnable, or four ascending numbers.
        """
        super().__init__()
        self.learnable = kind == "learnable"
        start = torch.tensor(SPEC_THRESHOLDS if isinstance(kind, str) else tuple(kind))
        if self.learnable:
            # The first threshold and the logarithms of the gaps: training keeps the order.
            self.first = nn.Parameter(start[:1].clone())
            self.log_gaps = nn.Parameter(start.diff().log())
        else:
            self.register_buffer("values", start)
        self.register_buffer("fitted", torch.tensor(kind != "quantile"))
        self._known_fitted = False  # reading the buffer waits for the device, so only until true

    @torch.no_grad()
    def fit(self, changes: Tensor) -> None:
        """Set the thresholds to quantiles of the training changes; the start of learnable ones.

        Args:
            changes: Changes of training windows, the same on every rank. Shape (n,).

        Raises:
            ValueError: There is no change, or one is not finite.
        """
        thresholds = quantile_thresholds(changes)
        if self.learnable:
            self.first.copy_(thresholds[:1])
            self.log_gaps.copy_(thresholds.diff().clamp_min(1e-4).log())
        else:
            self.values.copy_(thresholds)
        self.fitted.fill_(True)

    def forward(self, future: Tensor, last: Tensor) -> TrendLabels:
        """Label a batch.

        Args:
            future: Next H steps, normalised by their own window. Shape (R, H).
            last: Last value of the window, normalised alike. Shape (R,).

        Returns:
            The labels; with soft ones where the thresholds are learnable.

        Raises:
            ValueError: The shapes do not fit, or quantiles were asked for and never fitted.
        """
        self._known_fitted = self._known_fitted or bool(self.fitted)
        if not self._known_fitted:
            raise ValueError(
                "tapr.trend_thresholds=quantile was never fitted: call fit() with the changes of "
                "the training windows, or load a checkpoint that has them."
            )
        thresholds = self._learned() if self.learnable else self.values
        labels = trend_labels(future, last, thresholds)
        if not self.learnable:
            return labels
        soft_direction, soft_magnitude = soft_trend_labels(labels.change, thresholds)
        return TrendLabels(
            change=labels.change,
            direction=labels.direction,
            magnitude=labels.magnitude,
            soft_direction=soft_direction,
            soft_magnitude=soft_magnitude,
        )

    def _learned(self) -> Tensor:
        gap_1, gap_2, gap_3 = self.log_gaps.float().exp()
        t1 = self.first.float()[0]
        return torch.stack([t1, t1 + gap_1, t1 + gap_1 + gap_2, t1 + gap_1 + gap_2 + gap_3])
