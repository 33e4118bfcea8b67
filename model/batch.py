"""What crosses the border of the model: tensors in, forecast out.

These classes have no slots: ZeRO-3 looks for tensors in a module's output through ``vars``.

Shape legend (this file):
    B  windows in the micro-batch     L  seq_len       T  prompt tokens, left-padded
    N  variates                       H  pred_len      R  B * N rows, row = b * N + n
    K  top_k, neighbours per row
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ForecastInputs:
    """One micro-batch as the model receives it."""

    context: Tensor
    """Standardised windows, oldest step first. Shape (B, L, N), float32."""

    prompt_ids: Tensor | None = None
    """Token ids of each row's prompt, left-padded. Shape (R, T), int64; None: no prompt."""

    prompt_mask: Tensor | None = None
    """True where ``prompt_ids`` holds a token, False on padding. Shape (R, T), bool."""


@dataclass(frozen=True, kw_only=True)
class RetrievedWindows:
    """The neighbours of each row, nearest first. Slots without one hold zeros."""

    windows: Tensor
    """Their contexts, standardised but not instance-normalised. Shape (R, K, L), float32."""

    futures: Tensor
    """Their next H steps as (future - loc) / scale of their own window. (R, K, H), float32."""

    ids: Tensor
    """Their ids in the memory bank, -1 where there is none. Shape (R, K), int64."""

    valid: Tensor
    """True where a neighbour exists. Shape (R, K), bool."""


@dataclass(frozen=True, kw_only=True)
class TrendPrediction:
    """What the trend head says about the change over the horizon."""

    direction: Tensor
    """Logits of down / flat / up. Shape (R, 3), float32."""

    magnitude: Tensor
    """Logits of strong down / weak down / weak up / strong up. Shape (R, 4), float32."""

    change: Tensor | None = None
    """Expected change in normalised units. Shape (R,), float32; None: level 3 not built."""


@dataclass(frozen=True, kw_only=True)
class ForecastOutput:
    """What the model says about one micro-batch."""

    forecast: Tensor
    """Next H steps on the standardised scale. Shape (B, H, N), float32."""

    trend: TrendPrediction | None = None
    """For the trend losses; None without the trend-aware patch router."""

    gate: Tensor | None = None
    """Trust in the present against history. Shape (R,), float32; None without the memory."""

    match: Tensor | None = None
    """How well the neighbours match, 0 to 1. Shape (R,), float32; None without the memory."""

    neighbour_weights: Tensor | None = None
    """Weights of the neighbours, 0 in empty slots. (R, K), float32; None without the memory."""
