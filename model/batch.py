"""What crosses the border of the model: tensors in, forecast out.

Named tuples, here and wherever a layer returns several tensors: ZeRO-3 finds the tensors in
them, and so gathers a layer's parameters again before its backward pass.

Shape legend (this file):
    B  windows in the micro-batch     L  seq_len       T  prompt tokens, left-padded
    N  variates                       H  pred_len      R  B * N rows, row = b * N + n
    K  top_k, neighbours per row
"""

from typing import NamedTuple

import torch
from torch import Tensor

from model.trend_labels import TrendLabels


class ForecastInputs(NamedTuple):
    """One micro-batch as the model receives it."""

    context: Tensor
    """Standardised windows, oldest step first. Shape (B, L, N), float32."""

    prompt_ids: Tensor | None = None
    """Token ids of each row's prompt, left-padded. Shape (R, T), int64; None: no prompt."""

    prompt_mask: Tensor | None = None
    """True where ``prompt_ids`` holds a token, False on padding. Shape (R, T), bool."""

    calendar_phase: Tensor | None = None
    """Cosine and sine of the time of year, then of the time of day, of the context's end. Shape
    (B, 4), float32; None: unknown."""

    sources: Tensor | None = None
    """Number of each window's source. (B,), int64; may be None where the model has one."""


class RetrievedWindows(NamedTuple):
    """The neighbours of each row, nearest first. Slots without one hold zeros."""

    windows: Tensor
    """Their contexts, standardised but not instance-normalised. Shape (R, K, L), float32."""

    futures: Tensor
    """Their next H steps as (future - loc) / scale of their own window. (R, K, H), float32."""

    ids: Tensor
    """Their ids in the memory bank, -1 where there is none. Shape (R, K), int64."""

    valid: Tensor
    """True where a neighbour exists. Shape (R, K), bool."""

    distances: Tensor | None = None
    """How far the search found each; 0 where there is none. (R, K), float32; only for the log."""

    def to(self, device: torch.device) -> "RetrievedWindows":
        """Move all of it to a device."""
        return RetrievedWindows(
            *(None if part is None else part.to(device) for part in self)  # type: ignore[arg-type]
        )


class TrendPrediction(NamedTuple):
    """What the trend head says about the change over the horizon."""

    direction: Tensor
    """Logits of down / flat / up. Shape (R, 3), float32."""

    magnitude: Tensor
    """Logits of strong down / weak down / weak up / strong up. Shape (R, 4), float32."""

    change: Tensor | None = None
    """Expected change in normalised units. Shape (R,), float32; None: level 3 not built."""


class ForecastOutput(NamedTuple):
    """What the model says about one micro-batch."""

    forecast: Tensor
    """Next H steps on the standardised scale. Shape (B, H, N), float32."""

    trend: TrendPrediction | None = None
    """For the trend losses; None without the trend-aware patch router."""

    labels: TrendLabels | None = None
    """What the horizon did; None without the router, or where no target was given."""

    gate: Tensor | None = None
    """Trust in the present against history. Shape (R,), float32; None without the memory."""

    match: Tensor | None = None
    """How well the neighbours match, 0 to 1. Shape (R,), float32; None without the memory."""

    neighbour_weights: Tensor | None = None
    """Weights of the neighbours, 0 in empty slots. (R, K), float32; None without the memory."""


def to_rows(windows: Tensor) -> Tensor:
    """Make each variate of each window a row of its own. (B, L, N) -> (R, L)."""
    return windows.transpose(1, 2).flatten(0, 1)


def from_rows(rows: Tensor, num_variates: int) -> Tensor:
    """Put rows back into windows. (R, H) -> (B, H, N)."""
    return rows.view(-1, num_variates, rows.shape[1]).transpose(1, 2)
