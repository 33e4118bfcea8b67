"""Each loss term by name, and their weighted sum.

Shape legend (this file):
    B  windows     R  rows, B * N     K  top_k
    N  variates    H  pred_len        C  classes
"""

from dataclasses import dataclass
from math import log

import torch
import torch.nn.functional as F
from torch import Tensor

from model.batch import TrendPrediction
from model.config import GramConfig, TaprConfig
from model.horizons import squared_errors
from model.trend_labels import TrendLabels

# Keeps the logarithms of the gate's entropy finite where the sigmoid saturates.
GATE_MARGIN = 1e-6


@dataclass(frozen=True, kw_only=True, slots=True)
class LossTerm:
    """One term of the loss."""

    value: Tensor
    """The term before weighting. Scalar, float32."""

    weight: float
    """Its weight, the warm-up not counted."""

    warms_up: bool = True
    """Whether the warm-up scales it; the forecast's own error counts from the first step."""


def forecast_loss(forecast: Tensor, target: Tensor) -> dict[str, LossTerm]:
    """Mean squared error of the forecast: each window counts alike, whatever its horizon.

    Args:
        forecast: Shape (B, H, N), float32.
        target: NaN beyond the horizon of its window. Shape (B, H, N), float32.

    Returns:
        The term ``forecast``.

    Raises:
        ValueError: The shapes differ.
    """
    if forecast.shape != target.shape:
        raise ValueError(
            f"forecast and target must have one shape, got {tuple(forecast.shape)} and "
            f"{tuple(target.shape)}: both are (B, H, N)."
        )
    value = squared_errors(forecast.float(), target.float()).sum() / max(1, forecast.numel())
    return {"forecast": LossTerm(value=value, weight=1.0, warms_up=False)}


def trend_losses(
    prediction: TrendPrediction, labels: TrendLabels, config: TaprConfig
) -> dict[str, LossTerm]:
    """Losses of the trend head, each a mean over rows.

    Args:
        prediction: What the trend head says.
        labels: What the horizon did; soft labels are used where they are given.
        config: Label smoothing and weights.

    Returns:
        ``direction``, ``magnitude``, ``hierarchy`` and, where level 3 is built, ``change``.
    """
    smoothing = config.label_smoothing
    values = {
        "direction": _cross_entropy(
            prediction.direction, labels.direction, labels.soft_direction, smoothing
        ),
        "magnitude": _cross_entropy(
            prediction.magnitude, labels.magnitude, labels.soft_magnitude, smoothing
        ),
        "hierarchy": hierarchical_consistency(prediction.direction, prediction.magnitude),
    }
    weights = {
        "direction": config.lambda_dir,
        "magnitude": config.lambda_mag,
        "hierarchy": config.lambda_hcl,
        "change": config.lambda_reg,
    }
    if prediction.change is not None:
        errors_R = F.smooth_l1_loss(prediction.change, labels.change, reduction="none")
        values["change"] = _mean(errors_R)
    return {
        name: LossTerm(value=value, weight=config.lambda_trend * weights[name])
        for name, value in values.items()
    }


def hierarchical_consistency(direction: Tensor, magnitude: Tensor) -> Tensor:
    """KL of what both levels say about down against up; a flat window counts half to each.

    Args:
        direction: Logits of down / flat / up. Shape (R, 3).
        magnitude: Logits of strong down / weak down / weak up / strong up. Shape (R, 4).

    Returns:
        Mean over rows of KL(level 1 || level 2), 0 where they agree. Scalar.

    Source: SPEC 1.1, paragraph "Losses".
    """
    down, flat, up = direction.log_softmax(dim=-1).unbind(-1)
    strong_down, weak_down, weak_up, strong_up = magnitude.log_softmax(dim=-1).unbind(-1)
    half_flat = flat - log(2)
    # In logarithms: a probability that underflows would turn the KL into inf or NaN.
    coarse_R2 = torch.stack([torch.logaddexp(down, half_flat), torch.logaddexp(up, half_flat)], 1)
    fine_R2 = torch.stack(
        [torch.logaddexp(strong_down, weak_down), torch.logaddexp(weak_up, strong_up)], 1
    )
    return _mean((coarse_R2.exp() * (coarse_R2 - fine_R2)).sum(dim=1))


@dataclass(frozen=True, kw_only=True, slots=True)
class GateTotals:
    """Sums over the rows of all ranks, without which N ranks would not train like one."""

    gate: Tensor
    """Sum of the gates of rows with a neighbour. Scalar, float32, without gradient."""

    rows: Tensor
    """How many such rows there are. Scalar, float32."""

    num_ranks: int = 1
    """Ranks whose gradients are averaged."""


def gate_totals(gate: Tensor, valid: Tensor) -> GateTotals:
    """Sum up this rank's rows; with several ranks the caller adds the sums up.

    Args:
        gate: Trust in the present. Shape (R,), float32.
        valid: True where a neighbour exists. Shape (R, K), bool.
    """
    found_R = valid.any(dim=1).float()
    return GateTotals(gate=(gate.detach() * found_R).sum(), rows=found_R.sum())


def retrieval_losses(
    gate: Tensor,
    match: Tensor,
    valid: Tensor,
    config: GramConfig,
    totals: GateTotals | None = None,
) -> dict[str, LossTerm]:
    """Losses of the knowledge gate over the rows that have a neighbour.

    The match is a constant to ``gate_consistency``: it would be lowered instead of heeded.

    Args:
        gate: Trust in the present. Shape (R,), float32.
        match: Match score of each row. Shape (R,), float32.
        valid: True where a neighbour exists. Shape (R, K), bool.
        config: The weight.
        totals: Sums over all ranks; default those of these rows. The entropy of a mean is no mean
            of entropies, so each rank takes its slope at the mean over all of them.

    Returns:
        ``gate_entropy``, the negative entropy of the mean gate (low: both answers are used), and
        ``gate_consistency``, each gate's entropy times its match (low: decisive where it may).
    """
    totals = totals or gate_totals(gate, valid)
    found_R = valid.any(dim=1).float()
    any_found = totals.rows.clamp(max=1)
    rows_per_rank = totals.rows.clamp_min(1) / totals.num_ranks
    mean_gate = totals.gate / totals.rows.clamp_min(1)
    p = mean_gate.clamp(GATE_MARGIN, 1 - GATE_MARGIN)
    slope = (p / (1 - p)).log()
    share = (gate * found_R).sum() / rows_per_rank
    diversity = (slope * (share - share.detach()) - _binary_entropy(mean_gate)) * any_found
    indecision = (found_R * match.detach() * _binary_entropy(gate)).sum() / rows_per_rank
    return {
        "gate_entropy": LossTerm(value=diversity, weight=config.lambda_retrieval),
        "gate_consistency": LossTerm(value=indecision, weight=config.lambda_retrieval),
    }


def total_loss(terms: dict[str, LossTerm], step: int, warmup_steps: int) -> Tensor:
    """Sum the weighted terms.

    Args:
        terms: The terms of this step, by name; at least one.
        step: Optimizer steps done before this one.
        warmup_steps: ``train.warmup_steps``; 0 counts everything from the first step.

    Returns:
        forecast + min(1, step / warmup_steps) * everything else. Scalar.

    Raises:
        ValueError: There is no term, or a step count is negative.

    Source: SPEC 1.3.
    """
    if not terms or step < 0 or warmup_steps < 0:
        raise ValueError(
            f"total_loss got terms {sorted(terms)}, step={step} and warmup_steps={warmup_steps}: "
            "pass at least one term, and counts that are not negative."
        )
    warmth = min(1.0, step / warmup_steps) if warmup_steps else 1.0
    weighted = [
        term.value * (term.weight * (warmth if term.warms_up else 1.0)) for term in terms.values()
    ]
    return torch.stack(weighted).sum()


def correct_count(logits: Tensor, labels: Tensor) -> tuple[Tensor, int]:
    """Count hits: ``(sum, count)`` of the accuracy. (R, C), (R,) -> scalar int64, R."""
    return (logits.argmax(dim=-1) == labels).sum(), len(labels)


def class_counts(labels: Tensor, num_classes: int) -> Tensor:
    """Count each class; counts of batches and ranks add up. (R,) -> (C,) int64."""
    return torch.stack([(labels == label).sum() for label in range(num_classes)])


def majority_count(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``(sum, count)`` of always naming the largest class, from *summed* counts (C,)."""
    return counts.max(), counts.sum()


def _cross_entropy(
    logits: Tensor, classes: Tensor, soft: Tensor | None, smoothing: float
) -> Tensor:
    target = classes if soft is None else soft
    summed = F.cross_entropy(logits, target, label_smoothing=smoothing, reduction="sum")
    return summed / max(1, len(logits))


def _binary_entropy(probability: Tensor) -> Tensor:
    p = probability.clamp(GATE_MARGIN, 1 - GATE_MARGIN)
    return -(p * p.log() + (1 - p) * (1 - p).log())


def _mean(values: Tensor) -> Tensor:
    return values.sum() / max(1, len(values))
