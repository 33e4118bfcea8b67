"""One run on the ranks of the process group: prepare, fit, score, report."""

import copy
import dataclasses
import json
import math
import os
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch.nn.functional as F

from dist_train import baselines, distributed, engine, leak_alarm, precision, report, run_folder
from dist_train.build import build_forecaster, build_prompt_builder
from dist_train.comparison import score_beside_baselines
from dist_train.config import RunConfig, config_to_yaml, count_steps
from dist_train.data.clock import overlapping_without_clock
from dist_train.data.sampler import GlobalBatchSampler
from dist_train.data.windows import ForecastData
from dist_train.evaluation import score_split
from dist_train.memory_build import bank_root
from dist_train.metrics import Scores
from dist_train.preflight import Preflight, identity
from dist_train.profiler import build_profiler
from dist_train.reproducibility import code_fingerprint, environment, seed_everything
from dist_train.retrieval import Retriever
from dist_train.retrieval_ridge import RetrievalVerdict, anchor_forecast, judge_retrieval
from dist_train.tracking import Tracker
from dist_train.trainer import FitResult, Trainer
from dist_train.trend_fit import training_changes
from memory_index.atomic_file import write_text
from model.backbone_files import fingerprint
from model.forecaster import Forecaster
from model.linear_anchor import AnchorFit

_IMPORTED = time.time()


@dataclass(frozen=True, kw_only=True)
class ClosedForm:
    """What is known before any training."""

    ridge: AnchorFit
    """The ridge without retrieval: the row beside every result."""

    verdict: RetrievalVerdict | None
    """Ridge with against without retrieval; None where nobody asked."""


def train_and_score(config: RunConfig, checked: Preflight) -> dict[str, Any]:
    """Train and score what has been checked; collective.

    Args:
        config: The run; its folder is new.
        checked: Its data and backbone.

    Returns:
        What ``result.json`` holds, on every rank.

    Raises:
        FloatingPointError: The loss is not finite.
        LeakError: The memory shows windows their own futures.
    """
    data, files, folder = checked.data, checked.backbone_files, config.run_folder
    main = distributed.is_main_rank()
    run_identity = identity(config, checked, distributed.world_size())
    # May still refuse: before the folder, so that the name is not taken by a run that never began.
    prompt_builder = build_prompt_builder(config, files, data.series_set.description)
    with distributed.agree_or_raise("Creating the run folder"):
        if main:
            _create_folder(folder, config)
    dtype = precision.resolve_dtype(config.train.precision)
    settings = engine.deepspeed_json(config, distributed.world_size(), dtype)
    if main:
        write_text(folder / "deepspeed.json", json.dumps(settings, indent=2))
        _say(report.opening(config, data, distributed.world_size(), dtype))

    banks = bank_root(folder)
    config, closed = _solve_closed_form(config, data, banks)
    engine.prepare()
    zero3 = settings if engine.divides_parameters(settings) else None
    model = build_forecaster(config, files, dtype, prompt_builder, zero3=zero3)
    retriever = None
    if config.gram.use_gram is True:
        retriever = Retriever(data, config.gram, config.bank, banks)
        if not retriever.needs_refresh:
            retriever.refresh({})
    ridge_val_mse = _set_solutions(model, config, data, closed, retriever)
    if main:
        _say(report.parameters(model, closed.ridge, closed.verdict, retriever))

    sampler = _build_sampler(config, data, settings)
    total_steps = count_steps(config.train, sampler.steps_per_epoch)
    ds_engine = engine.initialize(model, config, settings, total_steps)
    # From here on each rank draws its own dropout; until here all had to draw the same weights.
    seed_everything(config.train.seed + 1 + distributed.rank())
    facts = {
        "dtype": precision.dtype_name(dtype),
        "backbone": {"name": config.backbone.name, "fingerprint": fingerprint(files)},
    }
    profiler = build_profiler(config, ds_engine)
    with Tracker(folder, enabled=main) as tracker, profiler:
        trainer = Trainer(
            config, ds_engine, data, sampler, prompt_builder, tracker,
            retriever=retriever, total_steps=total_steps, facts=facts, profiler=profiler,
        )  # fmt: skip
        if retriever is not None and retriever.needs_refresh:
            trainer.refresh_memory()
        if retriever is not None:
            _check_for_leaks(retriever, tracker)
        fit = trainer.fit()
        trainer.restore_best()
        scores = score_beside_baselines(
            partial(trainer.forecast, split="test"), config, data, "test",
            module=ds_engine.module, retriever=retriever, prompt_builder=prompt_builder,
            ridge=closed.ridge, batch_size=config.train.eval_batch_size,
        )  # fmt: skip
        tracker.log(fit.steps, {f"test/mse/{name}": row.mse for name, row in scores.items()})

    forecast = partial(trainer.forecast, split="test")
    example = report.collect_example(forecast, closed.ridge, data, prompt_builder)
    ds_engine.close()
    if retriever is not None:
        retriever.close()
    result = _result(config, fit, closed, scores)
    result |= {"identity": run_identity, "ridge_val_mse": ridge_val_mse}
    with distributed.agree_or_raise("Writing the report"):
        if main:
            report.write(folder, config, data, result, scores, example)
            write_text(folder / run_folder.RESULT_FILE, json.dumps(result, indent=2))
            _say(report.table(scores))
    return result


def _create_folder(folder: Path, config: RunConfig) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "config.yaml", config_to_yaml(config))
    write_text(folder / "environment.json", json.dumps(environment(), indent=2))


def _solve_closed_form(
    config: RunConfig, data: ForecastData, banks: Path | None
) -> tuple[RunConfig, ClosedForm]:
    """Solve the ridges, and replace ``use_gram=auto`` by what validation says; collective."""
    verdict = None
    undecided = config.gram.use_gram == "auto"
    no_clock = overlapping_without_clock(data.series_set) is not None
    if (undecided and not no_clock) or config.model.anchor == "ridge_retrieval":
        verdict = judge_retrieval(data, config.gram, config.bank, banks)
    if undecided:
        if no_clock and distributed.is_main_rank():
            _say("memory: the series overlap in time but share no regular clock")
        use_gram = verdict is not None and verdict.helps
        gram = dataclasses.replace(config.gram, use_gram=use_gram)
        config = dataclasses.replace(config, gram=gram)
    return config, ClosedForm(ridge=baselines.fit_ridge(data), verdict=verdict)


def _set_solutions(
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
        candidates["retrieval"] = anchor_forecast(anchor, retriever, "val_selection")
    batch_size = config.train.eval_batch_size
    sums = score_split(candidates, data, "val_selection", batch_size=batch_size)
    mse = {name: total.mse() for name, total in sums.items()}
    if model.anchor is not None and mse["ridge"] <= mse.get("retrieval", math.inf):
        if "retrieval" in mse and distributed.is_main_rank():
            _say("anchor: the ridge without retrieval is better on validation and takes its place")
        weight = closed.ridge.weight
        unread = model.anchor.weight.shape[1] - weight.shape[1]  # the retrieved future counts 0
        model.anchor.set_solution(F.pad(weight, (0, unread)), closed.ridge.norm)
    return mse["ridge"]


def _build_sampler(
    config: RunConfig, data: ForecastData, settings: dict[str, Any]
) -> GlobalBatchSampler:
    return GlobalBatchSampler(
        len(data.windows["train"]),
        config.train.batch_size,
        settings["train_micro_batch_size_per_gpu"],
        distributed.rank(),
        distributed.world_size(),
        config.train.seed,
    )


def _check_for_leaks(retriever: Retriever, tracker: Tracker) -> None:
    leaks = leak_alarm.check_for_leaks(retriever)
    tracker.log(
        0,
        {
            "retrieval/train_over_repeat_last": leaks.train_ratio,
            "retrieval/val_over_repeat_last": leaks.val_ratio,
            "retrieval/overlaps": leaks.overlaps,
        },
    )
    if distributed.is_main_rank():
        _say(leak_alarm.message(leaks))


def _result(
    config: RunConfig, fit: FitResult, closed: ClosedForm, scores: dict[str, Scores]
) -> dict[str, Any]:
    started = float(os.environ.get("TIMELLM_STARTED_AT", _IMPORTED))
    result = {
        "run": config.name,
        "test_mse": round(scores["Time-LLM"].mse, 6),
        "ridge_mse": round(scores["ridge"].mse, 6),
        "train_s": round(fit.train_s, 1),
        "total_s": round(time.time() - started, 1),
        "ranks": distributed.world_size(),
        "best_step": fit.best_step,
        "steps": fit.steps,
        "val_mse": fit.best_val_mse,
        "use_gram": config.gram.use_gram,
        "windows_per_s": round(fit.windows_per_s, 2),
        "peak_rss_gib": round(fit.peak_rss_gib, 3),
        "code": code_fingerprint(),
        "scores": {name: asdict(row) for name, row in scores.items()},
    }
    if closed.verdict is not None:
        result["ridge_sample_val_mse"] = closed.verdict.without.validation_mse
        result["ridge_retrieval_val_mse"] = closed.verdict.with_retrieval.validation_mse
    return result


def _say(text: str) -> None:
    print(text, flush=True)
