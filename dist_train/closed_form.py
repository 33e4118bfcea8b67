"""Solved before any training: the ridges, the anchor, the thresholds of the trend labels."""

import copy
import dataclasses
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
from dist_train.selection import block_errors, gain_in_standard_errors, may_replace
from dist_train.trend_fit import training_changes
from dist_train.window_errors import WindowErrors
from model.forecaster import Forecaster
from model.linear_anchor import AnchorFit


@dataclass(frozen=True, kw_only=True)
class ClosedForm:
    """What is known before any training."""

    ridge: AnchorFit
    """The ridge without retrieval: the row beside every result."""

    verdict: RetrievalVerdict | None
    """Ridge with against without retrieval; None where nobody asked."""

    following_year: AnchorFit | None = None
    """The ridge without retrieval whose weights may follow the year; None where nobody asked."""

    off: tuple[str, ...] = ()
    """Names of the sources, of several, whose windows get no neighbours: validation said so."""


def solve(
    config: RunConfig, data: ForecastData, banks: Path | None
) -> tuple[RunConfig, ClosedForm]:
    """Solve the ridges, and replace ``use_gram=auto`` by what validation says; collective."""
    verdict, following_year, model = None, None, config.model
    off: tuple[str, ...] = ()
    undecided = config.gram.use_gram == "auto"
    no_clock = any(overlapping_without_clock(one) is not None for one in data.source_sets)
    if (undecided and not no_clock) or model.reads_future:
        verdict = judge_retrieval(
            data, config.gram, config.bank, model.anchor_rows, banks,
            follows_year=model.follows_year and model.reads_future,
        )  # fmt: skip
    if undecided:
        if no_clock and distributed.is_main_rank():
            line = "memory: the series overlap in time but share no regular clock"
            terminal.say(line, quiet=config.tracking.quiet)
        use_gram = verdict is not None and verdict.helps
        if verdict is not None and use_gram:
            off = verdict.off
        gram = dataclasses.replace(config.gram, use_gram=use_gram)
        config = dataclasses.replace(config, gram=gram)
    if model.follows_year and not model.reads_future:
        ridge, following_year = baselines.fit_ridge_and_following(data)
    else:
        ridge = baselines.fit_ridge(data)
    return config, ClosedForm(ridge=ridge, verdict=verdict, following_year=following_year, off=off)


def set_solutions(
    model: Forecaster,
    config: RunConfig,
    data: ForecastData,
    closed: ClosedForm,
    retriever: Retriever | None,
) -> float:
    """Give the model its anchor and the thresholds of its trend labels; collective.

    A ridge with retrieval is solved on a sample of windows, so it may be worse than the ridge on
    all of them, and so may one that follows the year on windows that are thinned. Whichever is
    better on the windows of model selection becomes the anchor, the ridge also where
    ``train.selection`` finds the other no better than chance: no run starts below the ridge.

    Returns:
        MSE of the ridge on the windows of model selection.
    """
    if model.trend is not None and not isinstance(config.tapr.trend_thresholds, list):
        model.trend.thresholds.fit(training_changes(data.windows["train"]))
    candidates = {"ridge": baselines.ridge_forecast(closed.ridge)}
    start, retrieve = closed.following_year, None
    if config.model.reads_future:
        assert closed.verdict is not None
        assert retriever is not None
        start, retrieve = closed.verdict.with_retrieval, retriever.forecast
    if start is not None:
        assert model.anchor is not None
        model.anchor.set_solution(start.weight, start.norm)
        anchor = copy.deepcopy(model.anchor).to(distributed.device())
        candidates["start"] = anchor_forecast(anchor, retrieve, "val_selection")
    windows = data.windows["val_selection"]
    errors = WindowErrors(windows)
    sums = score_split(
        errors.watch(candidates), data, "val_selection", batch_size=config.train.eval_batch_size
    )
    mse = {name: total.mse() for name, total in sums.items()}
    blocks = {name: block_errors(each, windows) for name, each in errors.gather().items()}
    taken = False
    if "start" in mse:
        gain = gain_in_standard_errors(blocks["ridge"], blocks["start"])
        may = may_replace(config.train.selection, gain, len(blocks["start"]))
        taken = mse["start"] < mse["ridge"] and may
        if not taken and distributed.is_main_rank():
            line = (
                f"anchor: the plain ridge takes its place, validation mse {mse['ridge']:.4f} "
                f"against {mse['start']:.4f} (a gain of {gain:.1f} standard errors)"
            )
            terminal.say(line, quiet=config.tracking.quiet)
    if model.anchor is not None and not taken:
        weight = closed.ridge.weight
        unread = model.anchor.weight.shape[1] - weight.shape[1]  # retrieved and year count 0
        model.anchor.set_solution(F.pad(weight, (0, unread)), closed.ridge.norm)
    return mse["ridge"]


def pack(closed: ClosedForm, ridge_val_mse: float) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Turn it into tensors and plain JSON values, for a checkpoint."""
    fits = {"ridge": closed.ridge}
    if closed.verdict is not None:
        fits |= {"without": closed.verdict.without, "with": closed.verdict.with_retrieval}
    if closed.following_year is not None:
        fits["year"] = closed.following_year
    facts = {
        name: {
            "norm": fit.norm,
            "lam": fit.lam,
            "validation_mse": fit.validation_mse,
            "follows_year": fit.follows_year,
        }
        for name, fit in fits.items()
    }
    tensors = {name: fit.weight.detach().cpu().contiguous() for name, fit in fits.items()}
    told: dict[str, Any] = {"fits": facts, "ridge_val_mse": ridge_val_mse}
    if closed.verdict is not None and closed.verdict.by_source:
        told["by_source"] = {k: list(mse) for k, mse in closed.verdict.by_source.items()}
    if closed.off:
        told["off"] = list(closed.off)
    return tensors, told


def sources_off(facts: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the sources whose windows get no neighbours, from what :func:`pack` wrote."""
    return tuple(facts.get("off", ()))


def unpack(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> tuple[ClosedForm, float]:
    """Make what :func:`pack` was given again; without the candidates that were not chosen."""
    fits = {
        name: AnchorFit(weight=tensors[name], candidates={}, **known)
        for name, known in facts["fits"].items()
    }
    verdict = None
    if "with" in fits:
        verdict = RetrievalVerdict(
            without=fits["without"],
            with_retrieval=fits["with"],
            by_source={name: tuple(mse) for name, mse in facts.get("by_source", {}).items()},
        )
    closed = ClosedForm(
        ridge=fits["ridge"],
        verdict=verdict,
        following_year=fits.get("year"),
        off=sources_off(facts),
    )
    return closed, float(facts["ridge_val_mse"])
