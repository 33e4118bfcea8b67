"""dist_train/objective.py: the terms by name, on N ranks as on one, and their sums for the log."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dist_train.config import RunConfig
from dist_train.objective import TrainingSums, Work, loss_terms
from model.batch import ForecastOutput, RetrievedWindows, TrendPrediction
from model.config import GramConfig, TaprConfig
from model.losses import total_loss
from model.trend_labels import TrendLabels
from tests.helpers.ranks import run_ranks

CONFIG = RunConfig(gram=GramConfig(use_gram=True))
R, B, H, N = 12, 6, 4, 2


def retrieved_of(valid: Tensor) -> RetrievedWindows:
    shape = tuple(valid.shape)
    return RetrievedWindows(
        windows=torch.zeros(*shape, 5), futures=torch.zeros(*shape, H),
        ids=valid.long() - 1, valid=valid,
    )  # fmt: skip


def make(rows: slice = slice(None), logits: Tensor | None = None) -> ForecastOutput:
    """The output of some of the rows of one fixed batch; the gate is made of ``logits``."""
    rng = torch.Generator().manual_seed(0)
    everything = ForecastOutput(
        forecast=torch.randn(R, H, generator=rng),
        trend=TrendPrediction(
            direction=torch.randn(R, 3, generator=rng), magnitude=torch.randn(R, 4, generator=rng),
            change=torch.randn(R, generator=rng),
        ),
        labels=TrendLabels(
            change=torch.randn(R, generator=rng),
            direction=torch.randint(3, (R,), generator=rng),
            magnitude=torch.randint(4, (R,), generator=rng),
        ),
        gate=torch.randn(R, generator=rng).sigmoid() if logits is None else logits.sigmoid(),
        match=torch.rand(R, generator=rng),
    )  # fmt: skip
    assert everything.trend is not None
    assert everything.labels is not None
    count = len(range(R)[rows])
    return ForecastOutput(
        forecast=everything.forecast[rows].view(count // N, N, H).transpose(1, 2),
        trend=TrendPrediction(*(part[rows] for part in everything.trend)),
        labels=TrendLabels(*(part[rows] for part in everything.labels[:3])),
        gate=everything.gate[rows],
        match=everything.match[rows],
    )


def valid_of(pattern: str) -> Tensor:
    """Rows with a neighbour: all, the first eight, or none."""
    found = {"all": R, "uneven": 8, "none": 0}[pattern]
    return (torch.arange(R) < found)[:, None].expand(R, 3)


def test_the_terms_are_named_after_the_modules_that_make_them():
    output, target = make(), torch.zeros(B, H, N)
    terms = loss_terms(output, target, retrieved_of(valid_of("all")), CONFIG)
    assert list(terms) == [
        "forecast", "direction", "magnitude", "hierarchy", "change", "gate_entropy",
        "gate_consistency",
    ]  # fmt: skip
    weights = {name: term.weight for name, term in terms.items()}
    assert weights == pytest.approx(
        {"forecast": 1.0, "direction": 0.15, "magnitude": 0.15, "hierarchy": 0.05, "change": 0.05,
         "gate_entropy": 0.3, "gate_consistency": 0.3}
    )  # fmt: skip
    plain = ForecastOutput(forecast=output.forecast)
    assert list(loss_terms(plain, target, None, CONFIG)) == ["forecast"]
    without_change = output._replace(trend=output.trend._replace(change=None))
    tapr = replace(CONFIG, tapr=TaprConfig(lambda_reg=0.0))
    assert "change" not in loss_terms(without_change, target, retrieved_of(valid_of("all")), tapr)


@pytest.mark.parametrize(("step", "warmth"), [(0, 0.0), (125, 0.25), (500, 1.0), (900, 1.0)])
def test_the_total_is_the_forecasts_error_and_the_warm_weighted_rest(step: int, warmth: float):
    target = torch.randn(B, H, N)
    terms = loss_terms(make(), target, retrieved_of(valid_of("all")), CONFIG)
    expected = float((make().forecast - target).square().mean())
    for name, term in terms.items():
        if name != "forecast":
            expected += warmth * term.weight * float(term.value)
    assert float(total_loss(terms, step, 500)) == pytest.approx(expected, rel=1e-5)


def gradient_on_ranks(rank: int, world_size: int, pattern: str, out: Path) -> None:
    """Write the mean over ranks of the gradient of the gate's losses, and of their values."""
    share = slice(rank * R // world_size, (rank + 1) * R // world_size)
    logits = torch.linspace(-2, 1, R, requires_grad=True)
    output = make(share, logits)
    terms = loss_terms(
        output, torch.zeros_like(output.forecast), retrieved_of(valid_of(pattern)[share]), CONFIG
    )
    names = ("gate_entropy", "gate_consistency")
    (gradient,) = torch.autograd.grad(sum(terms[name].value for name in names), logits)
    values = torch.stack([terms[name].value.detach() for name in names])
    from dist_train import distributed

    mean = distributed.reduce_sum(torch.cat([gradient, values])) / world_size
    if rank == 0:
        torch.save(mean, out / f"{pattern}-{world_size}.pt")


def gradients_on_ranks(rank: int, world_size: int, out: Path) -> None:
    for pattern in ("all", "uneven", "none"):
        gradient_on_ranks(rank, world_size, pattern, out)


@pytest.mark.ranks
def test_many_ranks_have_the_gate_gradient_of_one(tmp_path: Path):
    # With three ranks and eight rows found, the ranks find 4, 4 and 0; with two 6 and 2.
    for world_size in (1, 2, 3):
        run_ranks(gradients_on_ranks, world_size, tmp_path)
    for pattern in ("all", "uneven", "none"):
        one = torch.load(tmp_path / f"{pattern}-1.pt")
        assert bool(one.any()) == (pattern != "none")
        for world_size in (2, 3):
            many = torch.load(tmp_path / f"{pattern}-{world_size}.pt")
            torch.testing.assert_close(many, one, atol=1e-6, rtol=1e-5)


def test_the_gate_gradient_is_that_of_the_entropies_written_down():
    logits = torch.linspace(-2, 1, R, requires_grad=True)
    valid, output = valid_of("uneven"), make(logits=logits)
    terms = loss_terms(output, torch.zeros(B, H, N), retrieved_of(valid), CONFIG)
    total = terms["gate_entropy"].value + terms["gate_consistency"].value
    (gradient,) = torch.autograd.grad(total, logits, retain_graph=True)

    def entropy(p: Tensor) -> Tensor:
        return -p * p.log() - (1 - p) * (1 - p).log()

    gate, match = output.gate[:8], output.match[:8]
    by_hand = -entropy(gate.mean()) + (match * entropy(gate)).mean()
    (expected,) = torch.autograd.grad(by_hand, logits)
    torch.testing.assert_close(total, by_hand)
    torch.testing.assert_close(gradient, expected)


def test_the_log_has_means_of_terms_and_accuracies_beside_the_majority():
    sums = TrainingSums()
    losses, hits = [], {"direction": 0, "magnitude": 0}
    counts = {"direction": [0] * 3, "magnitude": [0] * 4}
    for rows in (slice(0, 8), slice(8, 12)):
        output = make(rows)
        target = torch.zeros_like(output.forecast)
        terms = loss_terms(output, target, retrieved_of(valid_of("all")[rows]), CONFIG)
        loss = total_loss(terms, 0, 0)
        sums.add(loss, terms, output)
        losses.append(
            {"loss": float(loss)} | {f"loss_{n}": float(t.value) for n, t in terms.items()}
        )
        for name in hits:
            logits, labels = getattr(output.trend, name), getattr(output.labels, name)
            for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
                hits[name] += row.index(max(row)) == label
                counts[name][label] += 1
    metrics = sums.reduce()
    for name in losses[0]:
        mean = (losses[0][name] + losses[1][name]) / 2
        assert metrics[f"train/{name}"] == pytest.approx(mean, abs=1e-6)
    for name in hits:
        assert metrics[f"train/accuracy_{name}"] == pytest.approx(hits[name] / R)
        assert metrics[f"train/majority_{name}"] == pytest.approx(max(counts[name]) / R)
    gates = (make(slice(0, 8)).gate.mean() + make(slice(8, 12)).gate.mean()) / 2
    assert metrics["retrieval/gate"] == pytest.approx(float(gates), rel=1e-5)
    assert metrics["train/weight_gate_entropy"] == 0.3
    assert metrics["train/weight_forecast"] == 1.0


def test_a_run_without_modules_logs_the_forecast_alone():
    sums, output = TrainingSums(), ForecastOutput(forecast=make().forecast)
    terms = loss_terms(output, torch.zeros(B, H, N), None, CONFIG)
    sums.add(total_loss(terms, 0, 0), terms, output)
    assert sums.reduce().keys() == {
        "train/loss", "train/loss_forecast", "train/weight_forecast"
    }  # fmt: skip


def test_work_and_distances_are_means_of_a_micro_batch():
    sums = TrainingSums()
    found = [[0.5, 1.5], [2.0, 0.0]], [[True, True], [True, False]]
    distances, valid = torch.tensor(found[0]), torch.tensor(found[1])
    nothing = torch.zeros(2, 2, dtype=torch.bool)
    output = ForecastOutput(forecast=make().forecast)
    for retrieved, work in (
        (retrieved_of(valid)._replace(distances=distances), Work(tokens=10, flops=2e12)),
        (retrieved_of(nothing)._replace(distances=torch.zeros(2, 2)), Work(tokens=20, flops=4e12)),
    ):
        sums.add(torch.tensor(1.0), {}, output, retrieved, work)
    metrics = sums.reduce()
    assert metrics["retrieval/hit_distance"] == pytest.approx((4 / 3 + 0) / 2)
    assert (metrics["perf/tokens"], metrics["perf/flops"]) == (15, 3e12)
