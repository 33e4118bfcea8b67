"""Part ``step`` of the retrieval benchmark: what a memory of a million entries costs a step.

The model, batch and precision are those of configs/quickstart.yaml. The embedded series is joined
by noisy copies of itself on the same clock until every window of all makes a million entries.

Three steps take turns: with a live search (for the next batch, beside the step, as the training
does it; the step is not over before that search is), with the same neighbours kept from before, and
of the model without a memory.
"""

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dist_train import distributed, engine, precision
from dist_train.build import build_forecaster, build_prompt_builder
from dist_train.config import RunConfig, load_run_config
from dist_train.data.collate import Collator, WindowBatch
from dist_train.data.series import load_series
from dist_train.data.windows import ForecastData, build_forecast_data
from dist_train.objective import loss_terms
from dist_train.retrieval import Retriever
from dist_train.trend_fit import training_changes
from model.backbone_files import locate_backbone
from model.batch import RetrievedWindows
from model.config import PLAIN_ANCHOR
from model.losses import total_loss

ENTRIES, QUICK_ENTRIES = 1_000_000, 100_000
ROUNDS, QUICK_ROUNDS = 12, 3
NOISE = 0.1  # of a series' standard deviation
QUICKSTART = Path(__file__).parents[1] / "configs" / "quickstart.yaml"


def widened_data(config: RunConfig, entries: int) -> ForecastData:
    """The run's series and noisy copies on the same clock, of at least so many entries in all."""
    series_set = load_series(config.data)
    first = series_set.series[0]
    one = build_forecast_data(config.data, series_set)
    per_series = len(one.windows["train"]) * one.num_variates
    rng = np.random.default_rng(0)
    scale = first.values.std(axis=0) * NOISE
    count = -(-entries // per_series) - 1
    noise = (scale * rng.normal(size=first.values.shape) for _ in range(count))
    copies = [
        replace(first, id=f"copy {number}", values=first.values + part)
        for number, part in enumerate(noise)
    ]
    return build_forecast_data(config.data, replace(series_set, series=(first, *copies)))


def measure(rank: int, world_size: int, quick: bool) -> dict[str, Any]:
    """Time the three steps in turn; collective over the ranks of the benchmark."""
    # The widened series has no variates or dates of its own that an anchor could follow.
    config = load_run_config(QUICKSTART, PLAIN_ANCHOR)
    config = replace(config, bank=replace(config.bank, bank_stride=1))
    data = widened_data(config, QUICK_ENTRIES if quick else ENTRIES)
    dtype = precision.resolve_dtype(config.train.precision)
    retriever = Retriever(data, config.gram, config.bank)
    retriever.refresh({})

    with_memory = EngineStep(config, data, dtype)
    without = replace(
        config,
        gram=replace(config.gram, use_gram=False),
        model=replace(config.model, anchor="ridge"),
    )
    without_memory = EngineStep(without, data, dtype)

    share = config.train.batch_size // world_size
    order = np.random.default_rng(1).permutation(len(data.windows["train"]))
    rounds = QUICK_ROUNDS if quick else ROUNDS
    collator = Collator(data.windows["train"], with_memory.prompt_builder)
    batches = [
        collator(order[(step * world_size + rank) * share :][:share].tolist())
        for step in range(rounds + 2)
    ]
    times: dict[str, list[float]] = {"live": [], "kept": [], "none": []}
    searched: list[float] = []
    current = retriever.retrieve(batches[0], "train")
    for number, batch in enumerate(batches[:-1]):
        distributed.barrier()
        retriever.search_s = 0.0
        began = time.perf_counter()
        ahead = retriever.retrieve_ahead(batches[number + 1], "train")
        with_memory.step(batch, current, number)
        following = ahead.result()
        distributed.barrier()
        live = time.perf_counter() - began
        searched.append(retriever.search_s)

        began = time.perf_counter()
        with_memory.step(batch, current, number)
        distributed.barrier()
        kept = time.perf_counter() - began

        began = time.perf_counter()
        without_memory.step(batch, None, number)
        distributed.barrier()
        none = time.perf_counter() - began
        if number > 0:  # the first compiles and allocates
            for name, seconds in (("live", live), ("kept", kept), ("none", none)):
                times[name].append(seconds)
        current = following
    medians = {name: float(np.median(values)) for name, values in times.items()}
    alone = []
    for batch in batches[:5]:
        distributed.barrier()
        began = time.perf_counter()
        retriever.retrieve(batch, "train")
        alone.append(time.perf_counter() - began)
    retriever.close()
    return {
        "step_over_no_retrieval": _ratio(times["live"], times["kept"]),
        "step_over_model_without_memory": _ratio(times["live"], times["none"]),
        "step_ms": {name: 1000 * value for name, value in medians.items()},
        "search_ms_beside_the_step": 1000 * float(np.median(searched)),
        "search_and_fetch_ms_alone": 1000 * float(np.median(alone)),
        "step_entries": len(retriever.bank),
        "step_index": retriever.builder.reason,
        "step_nprobe": retriever.live.parts[0].index.effort,
        "precision": precision.dtype_name(dtype),
        "cores": os.cpu_count(),
    }


def _ratio(over: list[float], under: list[float]) -> float:
    """Median of the ratios, round by round: the machine's speed drifts."""
    return float(np.median(np.array(over) / np.array(under)))


class EngineStep:
    """A model and its DeepSpeed engine, as a training has them."""

    def __init__(self, config: RunConfig, data: ForecastData, dtype: torch.dtype) -> None:
        """Build both; collective."""
        files = locate_backbone(config.backbone.name)
        self.config = config
        self.prompt_builder = build_prompt_builder(config, files, data.descriptions)
        model = build_forecaster(config, files, dtype, self.prompt_builder)
        if model.trend is not None:
            model.trend.thresholds.fit(training_changes(data.windows["train"]))
        if model.anchor is not None:
            zeros = torch.zeros_like(model.anchor.weight, device="cpu")
            model.anchor.set_solution(zeros, "last")
        settings = engine.deepspeed_json(config, distributed.world_size(), dtype)
        self.engine = engine.initialize(model, config, settings, total_steps=1000)
        self.engine.module.train()

    def step(self, batch: WindowBatch, neighbours: RetrievedWindows | None, number: int) -> None:
        """Forward, losses, backward, optimizer."""
        on_device = batch.to(distributed.device())
        output = self.engine(on_device.inputs, neighbours, on_device.target)
        terms = loss_terms(output, on_device.target, neighbours, self.config)
        loss = total_loss(terms, number, self.config.train.warmup_steps)
        self.engine.backward(loss)
        self.engine.step()
