"""The loss of one micro-batch by name, and its sums for the log.

Shape legend (this file):
    B  windows     H  pred_len     N  variates
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from dist_train import distributed
from dist_train.config import RunConfig
from model.batch import ForecastOutput, RetrievedWindows
from model.losses import (
    GateTotals,
    LossTerm,
    class_counts,
    correct_count,
    forecast_loss,
    gate_totals,
    majority_count,
    retrieval_losses,
    trend_losses,
)
from model.trend_head import NUM_DIRECTIONS, NUM_MAGNITUDES


def loss_terms(
    output: ForecastOutput,
    target: Tensor,
    retrieved: RetrievedWindows | None,
    config: RunConfig,
) -> dict[str, LossTerm]:
    """Make every term that the run's modules have; collective where the memory is on.

    Args:
        output: What the model says.
        target: Standardised truth, NaN beyond the horizon of its window. Shape (B, H, N).
        retrieved: The neighbours that it was given.
        config: The weights.
    """
    terms = forecast_loss(output.forecast, target)
    if output.trend is not None:
        assert output.labels is not None  # the training passes the target
        terms |= trend_losses(output.trend, output.labels, config.tapr)
    if output.gate is not None:
        assert output.match is not None
        assert retrieved is not None
        totals = _over_ranks(gate_totals(output.gate, retrieved.valid))
        terms |= retrieval_losses(output.gate, output.match, retrieved.valid, config.gram, totals)
    return terms


class Work(NamedTuple):
    """What one micro-batch of one rank asks of the device."""

    tokens: float
    """Tokens that go through the language model, padding left out."""

    flops: float
    """Floating-point operations, forward and backward; 0 where they cannot be counted."""


@dataclass
class TrainingSums:
    """What the log says about the steps since its last line; added up over ranks when it does."""

    values: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, Tensor] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    num_batches: int = 0

    def add(
        self,
        loss: Tensor,
        terms: dict[str, LossTerm],
        output: ForecastOutput,
        retrieved: RetrievedWindows | None = None,
        work: Work | None = None,
    ) -> None:
        """Add one micro-batch, without waiting for the device."""
        self.num_batches += 1
        if work is not None:
            for name, amount in work._asdict().items():
                self._value(f"perf/{name}", loss.new_full((), amount, dtype=torch.float64))
        if retrieved is not None and retrieved.distances is not None:
            found = retrieved.valid.sum().clamp_min(1)
            self._value("retrieval/hit_distance", retrieved.distances.sum() / found)
        self._value("train/loss", loss)
        for name, term in terms.items():
            self._value(f"train/loss_{name}", term.value)
            self.weights[f"train/weight_{name}"] = term.weight
        if output.gate is not None:
            self._value("retrieval/gate", output.gate.mean())
            assert output.match is not None
            self._value("retrieval/match", output.match.mean())
        if output.trend is not None and output.labels is not None:
            labels = output.labels
            for name, logits, classes, number in (
                ("direction", output.trend.direction, labels.direction, NUM_DIRECTIONS),
                ("magnitude", output.trend.magnitude, labels.magnitude, NUM_MAGNITUDES),
            ):
                self._count(f"{name}/correct", correct_count(logits, classes)[0][None])
                self._count(f"{name}/classes", class_counts(classes, number))

    def merge(self, other: "TrainingSums") -> None:
        """Add the sums of another one."""
        self.num_batches += other.num_batches
        self.weights |= other.weights
        for mine, theirs in ((self.values, other.values), (self.counts, other.counts)):
            for name, tensor in theirs.items():
                mine[name] = mine[name] + tensor if name in mine else tensor

    def reduce(self) -> dict[str, float]:
        """Means over steps and ranks, by the name they are logged under; collective.

        The weights are those of SPEC's loss, the warm-up not counted.
        """
        names = sorted(self.values)
        stacked = torch.stack([self.values[name] for name in names])
        means = distributed.reduce_sum(stacked) / (self.num_batches * distributed.world_size())
        metrics = dict(zip(names, means.tolist(), strict=True)) | self.weights
        for name in ("direction", "magnitude"):
            if f"{name}/classes" in self.counts:
                classes = distributed.reduce_sum(self.counts[f"{name}/classes"])
                correct = distributed.reduce_sum(self.counts[f"{name}/correct"])
                largest, total = majority_count(classes)
                metrics[f"train/accuracy_{name}"] = float(correct) / float(total)
                metrics[f"train/majority_{name}"] = float(largest) / float(total)
        return metrics

    def rescale(self, before: int, now: int) -> None:
        """Take other micro-batches for the same steps.

        Args:
            before: Micro-batches of a step so far.
            now: From now on.
        """
        if now != before:
            self.num_batches = self.num_batches * now // before
            self.values = {name: value * now / before for name, value in self.values.items()}

    def tensors(self) -> dict[str, Tensor]:
        """The sums themselves, by a name that says which kind they are."""
        values = {f"value.{name}": tensor for name, tensor in self.values.items()}
        return values | {f"count.{name}": tensor for name, tensor in self.counts.items()}

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Take over what :meth:`tensors` gave."""
        for name, tensor in tensors.items():
            kind, _, name = name.partition(".")
            {"value": self.values, "count": self.counts}[kind][name] = tensor

    def _value(self, name: str, value: Tensor) -> None:
        self.values[name] = self.values.get(name, torch.zeros_like(value)) + value.detach().double()

    def _count(self, name: str, count: Tensor) -> None:
        self.counts[name] = self.counts.get(name, torch.zeros_like(count)) + count


def _over_ranks(totals: GateTotals) -> GateTotals:
    gate, rows = distributed.reduce_sum(torch.stack([totals.gate, totals.rows]))
    return GateTotals(gate=gate, rows=rows, num_ranks=distributed.world_size())
