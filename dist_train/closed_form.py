"""Solved before any training: the ridges, the anchor, the thresholds of the trend labels."""

import copy
import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from dist_train import baselines, distributed, terminal
from dist_train.config import RunConfig
from dist_train.data.clock import overlapping_without_clock
from dist_train.data.windows import ForecastData
from dist_train.evaluation import score_split
from dist_train.retrieval import Retriever
from dist_train.retrieval_ridge import RetrievalVerdict, anchor_forecast, judge_retrieval
from dist_train.trend_fit import training_changes
from model.forecaster import Forecaster
from model.linear_anchor import AnchorFit


@dataclass(frozen=True, kw_only=True)
class ClosedForm:
    """What is known before any training."""

    ridge: AnchorFit
    """The ridge without retrieval: the row beside every result."""

    verdict: RetrievalVerdict | None
    """Ridge with against without retrieval; None where nobody asked."""


def solve(
    config: RunConfig, data: ForecastData, banks: Path | None
) -> tuple[RunConfig, ClosedForm]:
    """Solve the ridges, and replace ``use_gram=auto`` by what validation says; collective."""
    verdict = None
    undecided = config.gram.use_gram == "auto"
    no_clock = overlapping_without_clock(data.series_set) is not None
    if (undecided and not no_clock) or config.model.anchor == "ridge_retrieval":
        verdict = judge_retrieval(data, config.gram, config.bank, config.model.anchor_rows, banks)
    if undecided:
        if no_clock and distributed.is_main_rank():
            line = "memory: the series overlap in time but share no regular clock"
            terminal.say(line, quiet=config.tracking.quiet)
        use_gram = verdict is not None and verdict.helps
        gram = dataclasses.replace(config.gram, use_gram=use_gram)
        config = dataclasses.replace(config, gram=gram)
    return config, ClosedForm(ridge=baselines.fit_ridge(data), verdict=verdict)


def set_solutions(
    model: Forecaster,
    config: RunConfig,
    data: ForecastData,
    closed: ClosedForm,
    retriever: Retriever | None,
) -> float:
    """Give the model its anchor and the thresholds of its trend labels; collective.

    The ridge with retrieval is solved on a sample of windows, so it may be worse than the ridge
    on all of them. Whichever is better on the windows of model selection becomes the anchor: no
    run starts below the ridge.

    Returns:
        MSE of the ridge on the windows of model selection.
    """
    if model.trend is not None and not isinstance(config.tapr.trend_thresholds, list):
        model.trend.thresholds.fit(training_changes(data.windows["train"]))
    candidates = {"ridge": baselines.ridge_forecast(closed.ridge)}
    if config.model.anchor == "ridge_retrieval":
        assert model.anchor is not None
        assert closed.verdict is not None
        assert retriever is not None
        fit = closed.verdict.with_retrieval
        model.anchor.set_solution(fit.weight, fit.norm)
        anchor = copy.deepcopy(model.anchor).to(distributed.device())
        candidates["retrieval"] = anchor_forecast(anchor, retriever.forecast, "val_selection")
    batch_size = config.train.eval_batch_size
    sums = score_split(candidates, data, "val_selection", batch_size=batch_size)
    mse = {name: total.mse() for name, total in sums.items()}
    if model.anchor is not None and mse["ridge"] <= mse.get("retrieval", math.inf):
        if "retrieval" in mse and distributed.is_main_rank():
            line = "anchor: the ridge without retrieval is better on validation and takes its place"
            terminal.say(line, quiet=config.tracking.quiet)
        weight = closed.ridge.weight
        unread = model.anchor.weight.shape[1] - weight.shape[1]  # the retrieved future counts 0
        model.anchor.set_solution(F.pad(weight, (0, unread)), closed.ridge.norm)
    return mse["ridge"]


def pack(closed: ClosedForm, ridge_val_mse: float) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Turn it into tensors and plain JSON values, for a checkpoint."""
    fits = {"ridge": closed.ridge}
    if closed.verdict is not None:
        fits |= {"without": closed.verdict.without, "with": closed.verdict.with_retrieval}
    facts = {
        name: {"norm": fit.norm, "lam": fit.lam, "validation_mse": fit.validation_mse}
        for name, fit in fits.items()
    }
    tensors = {name: fit.weight.detach().cpu().contiguous() for name, fit in fits.items()}
    return tensors, {"fits": facts, "ridge_val_mse": ridge_val_mse}


def unpack(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> tuple[ClosedForm, float]:
    """Make what :func:`pack` was given again; without the candidates that were not chosen."""
    fits = {
        name: AnchorFit(weight=tensors[name], candidates={}, **known)
        for name, known in facts["fits"].items()
    }
    verdict = None
    if "with" in fits:
        verdict = RetrievalVerdict(without=fits["without"], with_retrieval=fits["with"])
    return ClosedForm(ridge=fits["ridge"], verdict=verdict), float(facts["ridge_val_mse"])
