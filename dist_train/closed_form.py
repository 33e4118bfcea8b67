"""Solved before any training: the ridges, the anchor, the thresholds of the trend labels."""

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dist_train import baselines, distributed, terminal
from dist_train.config import RunConfig
from dist_train.data.clock import without_clock
from dist_train.data.sources import Source
from dist_train.data.windows import ForecastData
from dist_train.evaluation import score_split, selection_mse
from dist_train.metrics import ErrorSums
from dist_train.retrieval import Retriever
from dist_train.retrieval_ridge import RetrievalVerdict, anchor_forecast, judge_retrieval
from dist_train.selection import blocks_of_source, gain_in_standard_errors, may_replace
from dist_train.trend_fit import training_changes
from dist_train.window_errors import WindowErrors
from model.anchor_fit import AnchorFit
from model.config import Extension
from model.forecaster import Forecaster


@dataclass(frozen=True, kw_only=True)
class ClosedForm:
    """What is known before any training."""

    ridge: AnchorFit
    """The ridge without retrieval: the row beside every result."""

    verdict: RetrievalVerdict | None
    """Ridge with against without retrieval; None where nobody asked."""

    extended: tuple[AnchorFit, ...] = ()
    """The ridge without retrieval that may read more than the window, or whose weights may be the
    variates' own, of each source; empty where nobody asked."""

    off: tuple[str, ...] = ()
    """Names of the sources, of several, whose windows get no neighbours: validation said so."""

    by_source: tuple[AnchorFit, ...] = ()
    """The ridge of each source without retrieval, that of all where it is not trained on; empty
    where there is one source."""

    @property
    def plain(self) -> tuple[AnchorFit, ...]:
        """The ridge without retrieval of each source."""
        return self.by_source or (self.ridge,)


def solve(
    config: RunConfig, data: ForecastData, banks: Path | None
) -> tuple[RunConfig, ClosedForm]:
    """Solve the ridges, and replace ``use_gram=auto`` by what validation says; collective."""
    verdict, model, several = None, config.model, len(data.sources) > 1
    individual = model.individual and data.num_variates > 1
    extensions = [_extension_of(config, source) for source in data.sources]
    by_source: tuple[AnchorFit, ...] = ()
    extended: tuple[AnchorFit, ...] = ()
    asked = individual or (any(extensions) and not model.reads_future)
    if several and asked:
        ridge, by_source, extended = baselines.fit_ridges_and_extended(data, extensions)
    elif asked:
        ridge, more = baselines.fit_ridge_and_extended(
            data, extension=extensions[0], individual=individual
        )
        extended = (more,)
    else:
        ridge, by_source = baselines.fit_ridges(data)
    off: tuple[str, ...] = ()
    undecided = config.gram.use_gram == "auto"
    clockless = without_clock(data.sources) if undecided else []
    may_have = undecided and any(
        data.only(number).num_entries(config.bank.bank_stride)
        for number in range(len(data.sources))
        if number not in clockless
    )
    if may_have or model.reads_future:
        verdict = judge_retrieval(
            data, config.gram, config.bank, model.anchor_rows, banks,
            extensions=extensions if model.reads_future or individual else (),
            start=extended[0] if individual else None,
        )  # fmt: skip
    if undecided:
        if clockless and distributed.is_main_rank():
            names = ", ".join(data.sources[number].name for number in clockless)
            which = f" of {names}" if len(data.sources) > 1 else ""
            line = f"memory: the series{which} overlap in time but share no regular clock"
            terminal.say(line, quiet=config.tracking.quiet)
        elif not may_have and distributed.is_main_rank():
            line = "memory: no source has a row that it may hold"
            terminal.say(line, quiet=config.tracking.quiet)
        use_gram = verdict is not None and verdict.helps
        if verdict is not None and use_gram:
            off = verdict.off
        gram = dataclasses.replace(config.gram, use_gram=use_gram)
        config = dataclasses.replace(config, gram=gram)
    return config, ClosedForm(
        ridge=ridge, verdict=verdict, extended=extended, by_source=by_source, off=off
    )


def set_solutions(
    model: Forecaster,
    config: RunConfig,
    data: ForecastData,
    closed: ClosedForm,
    retriever: Retriever | None,
) -> float:
    """Give the model its anchor and the thresholds of its trend labels; collective.

    A ridge with retrieval is solved on a sample of windows, so it may be worse than the ridge on
    all of them, and so may one that was chosen on all windows of validation be on those that
    select models. Whichever is
    better on the windows of model selection becomes the anchor, the ridge also where
    ``train.selection`` finds the other no better than chance: no run starts below the ridge.

    Returns:
        MSE of the ridge on the windows of model selection.
    """
    if model.trend is not None and not isinstance(config.tapr.trend_thresholds, list):
        model.trend.thresholds.fit(training_changes(data.windows["train"]))
    candidates = {"ridge": baselines.ridge_forecast(*closed.plain)}
    start, retrieve = closed.extended, None
    if config.model.reads_future:
        assert closed.verdict is not None
        assert retriever is not None
        start, retrieve = closed.verdict.reading, retriever.forecast
    if start:
        assert model.anchor is not None
        for source, fit in enumerate(start):
            model.anchor.set_solution(fit.weight, fit.norm, source, fit.extension)
        anchor = copy.deepcopy(model.anchor).to(distributed.device())
        candidates["start"] = anchor_forecast(anchor, retrieve, "val_selection")
    errors = WindowErrors(data.windows["val_selection"])
    sums = score_split(
        errors.watch(candidates), data, "val_selection", batch_size=config.train.eval_batch_size
    )
    by_window = errors.gather()
    trained = data.trained_sources
    taken = {
        source: bool(start)
        and (retrieve is not None or _is_more(start[source]))
        and _is_better(config, data, source, sums, by_window)
        for source in trained
    }
    # A source that is not trained on has no voice, not even about itself.
    most = 2 * sum(taken.values()) > len(trained)
    for source, fit in enumerate(closed.plain):
        if model.anchor is None or taken.get(source, most):
            continue
        model.anchor.set_solution(fit.weight, fit.norm, source, fit.extension)
    return selection_mse(sums["ridge"], data)


def _extension_of(config: RunConfig, source: Source) -> Extension:
    """What the closed form may read: not the day where all rows have the same time of it."""
    extension = config.model.anchor_extension
    if extension.calendar == "day":
        times = (one.dates - one.dates.astype("datetime64[D]") for one in source.series_set.series)
        if all((part == part[0]).all() for part in times):
            return dataclasses.replace(extension, calendar="none")
    return extension


def _is_more(fit: AnchorFit) -> bool:
    """Whether a ridge of the window differs from the plain one."""
    return bool(fit.extension) or any(lam is not None for lam in fit.deviations)


def _is_better(
    config: RunConfig,
    data: ForecastData,
    source: int,
    sums: Mapping[str, ErrorSums],
    by_window: Mapping[str, NDArray[np.float64]],
) -> bool:
    """Whether a source's anchor may be more than its ridge; says so where it may not."""
    channels = list(data.source_channels().values())[source]
    mse = {name: total.of_channels(channels).mse() for name, total in sums.items()}
    blocks = {
        name: blocks_of_source(errors, data, "val_selection", source)
        for name, errors in by_window.items()
    }
    gain = gain_in_standard_errors(blocks["ridge"], blocks["start"])
    may = may_replace(config.train.selection, gain, len(blocks["start"]))
    if mse["start"] < mse["ridge"] and may:
        return True
    if distributed.is_main_rank():
        which = f" of {data.sources[source].name}" if len(data.sources) > 1 else ""
        line = (
            f"anchor{which}: the plain ridge takes its place, validation mse {mse['ridge']:.4f} "
            f"against {mse['start']:.4f} (a gain of {gain:.1f} standard errors)"
        )
        terminal.say(line, quiet=config.tracking.quiet)
    return False


def pack(closed: ClosedForm, ridge_val_mse: float) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Turn it into tensors and plain JSON values, for a checkpoint."""
    fits = {"ridge": closed.ridge}
    if closed.verdict is not None:
        fits |= {"without": closed.verdict.without, "with": closed.verdict.with_retrieval}
    plain = closed.plain
    fits |= {f"extended_{n}": fit for n, fit in enumerate(closed.extended) if fit is not plain[n]}
    own = enumerate(closed.by_source)
    fits |= {f"source_{number}": fit for number, fit in own if fit is not closed.ridge}
    if closed.verdict is not None:
        reading = enumerate(closed.verdict.own)
        of_all = closed.verdict.with_retrieval
        fits |= {f"with_{number}": fit for number, fit in reading if fit is not of_all}
    facts = {
        name: {
            "norm": fit.norm,
            "lam": fit.lam,
            "validation_mse": fit.validation_mse,
            "calendar": fit.extension.calendar,
            "random_features": fit.extension.random_features,
            "deviations": list(fit.deviations),
        }
        for name, fit in fits.items()
    }
    tensors = {name: fit.weight.detach().cpu().contiguous() for name, fit in fits.items()}
    told: dict[str, Any] = {"fits": facts, "ridge_val_mse": ridge_val_mse}
    if closed.by_source:
        told["sources"] = len(closed.by_source)
    if closed.extended:
        told["extended"] = len(closed.extended)
    if closed.verdict is not None and closed.verdict.by_source:
        told["by_source"] = {k: list(mse) for k, mse in closed.verdict.by_source.items()}
    if closed.off:
        told["off"] = list(closed.off)
    return tensors, told


def _unpacked(weight: Tensor, facts: Mapping[str, Any]) -> AnchorFit:
    known = dict(facts)
    if known.pop("follows_year", False):  # as it was said before
        known["calendar"] = "year"
    extension = Extension(
        calendar=known.pop("calendar", "none"), random_features=known.pop("random_features", 0)
    )
    known["deviations"] = tuple(known.get("deviations", ()))
    return AnchorFit(weight=weight, candidates={}, extension=extension, **known)


def sources_off(facts: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the sources whose windows get no neighbours, from what :func:`pack` wrote."""
    return tuple(facts.get("off", ()))


def unpack(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> tuple[ClosedForm, float]:
    """Make what :func:`pack` was given again; without the candidates that were not chosen."""
    fits = {name: _unpacked(tensors[name], known) for name, known in facts["fits"].items()}
    sources = range(facts.get("sources", 0))
    verdict = None
    if "with" in fits:
        verdict = RetrievalVerdict(
            without=fits["without"],
            with_retrieval=fits["with"],
            by_source={name: tuple(mse) for name, mse in facts.get("by_source", {}).items()},
            own=tuple(fits.get(f"with_{number}", fits["with"]) for number in sources),
        )
    by_source = tuple(fits.get(f"source_{number}", fits["ridge"]) for number in sources)
    plain = by_source or (fits["ridge"],)
    extended = tuple(
        fits.get(f"extended_{number}", plain[number]) for number in range(facts.get("extended", 0))
    )
    for name in ("extended", "year"):  # as it was called before
        extended = (fits[name],) if name in fits else extended
    closed = ClosedForm(
        ridge=fits["ridge"],
        verdict=verdict,
        extended=extended,
        by_source=by_source,
        off=sources_off(facts),
    )
    return closed, float(facts["ridge_val_mse"])
