"""Parts ``loading`` and ``ranks`` of the scaling benchmark: what a step waits for.

``loading``: steps whose batches come from a corpus on the disk, through a worker, take turns with
steps on batches that lie in memory. ``ranks``: windows per second of one rank on one core, and of
two ranks on a core each, with a memory that is searched for every batch.
"""

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.retrieval_step import EngineStep
from benchmarks.scaling_start import write_config
from dist_train import distributed, precision
from dist_train.config import RunConfig, load_run_config
from dist_train.data.collate import Collator, WindowBatch
from dist_train.data.sampler import GlobalBatchSampler
from dist_train.data.windows import ForecastData, load_forecast_data
from dist_train.profiler import NoProfiler
from dist_train.retrieval import Retriever
from dist_train.step_feed import micro_batches
from memory_index.config import BankConfig
from model.config import GramConfig

TURN = 20
"""Steps of a turn."""
BANK = 100_000
"""Entries of the memory."""


def measure_loading(
    rank: int, world_size: int, folder: str, sources: list[str], backbone: str, turns: int
) -> dict[str, Any]:
    """Time both kinds of steps in turn; on one rank.

    Returns:
        ``loading_overhead``: how much longer a step is whose batch is loaded, as a share.
    """
    config = _config(folder, sources, backbone)
    data = load_forecast_data(config.data)
    step = EngineStep(config, data, precision.resolve_dtype(config.train.precision))
    loaded = _loaded(config, data, step)
    kept = [next(loaded) for _ in range(TURN)]
    ratios: list[float] = []
    for turn in range(turns + 1):
        times = []
        for batches in ((next(loaded) for _ in range(TURN)), iter(kept)):
            began = time.perf_counter()
            for number, batch in enumerate(batches):
                step.step(batch, None, turn * TURN + number)
            times.append(time.perf_counter() - began)
        if turn:  # the first warms both up
            ratios.append(times[0] / times[1])
    return {"loading_overhead": float(np.median(ratios)) - 1, "step_ms": 1000 * times[1] / TURN}


def measure_rank(
    rank: int, world_size: int, folder: str, sources: list[str], backbone: str, steps: int
) -> dict[str, Any]:
    """Train on one core for each rank, with a memory; collective.

    Returns:
        ``windows_per_s`` of all ranks together.
    """
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[rank]})
    config = _config(folder, sources, backbone)
    config = replace(
        config,
        gram=GramConfig(use_gram=True, retrieval_key="anchored", top_k=5),
        bank=BankConfig(max_memory_size=BANK),
        model=replace(config.model, prompt="none"),
    )
    data = load_forecast_data(config.data)
    retriever = Retriever(data, config.gram, config.bank)
    retriever.refresh({})
    step = EngineStep(config, data, precision.resolve_dtype(config.train.precision))
    order = np.random.default_rng(1).permutation(len(data.windows["train"]))
    collator = Collator(data.windows["train"], None)
    share = config.train.batch_size

    def batch_of(number: int) -> WindowBatch:
        first = (number * world_size + rank) * share
        return collator(order[first : first + share].tolist())

    times = []
    ahead, batch = retriever.retrieve_ahead(batch_of(0), "train"), batch_of(0)
    distributed.barrier()
    for number in range(steps):
        began = time.perf_counter()
        following = batch_of(number + 1)
        neighbours = ahead.result()
        ahead = retriever.retrieve_ahead(following, "train")
        step.step(batch, neighbours, number)
        batch = following
        distributed.barrier()
        times.append(time.perf_counter() - began)
    ahead.result()
    retriever.close()
    seconds = float(np.median(times[steps // 4 :]))
    return {"windows_per_s": share * world_size / seconds, "step_ms": 1000 * seconds}


def _config(folder: str, sources: list[str], backbone: str) -> RunConfig:
    file = write_config(Path(folder), [Path(one) for one in sources], Path(backbone), 1000)
    return load_run_config(file)


def _loaded(config: RunConfig, data: ForecastData, step: EngineStep) -> Iterator[WindowBatch]:
    """Batches of the corpus as a training has them."""
    sampler = GlobalBatchSampler(
        len(data.windows["train"]), config.train.batch_size, config.train.batch_size, 0, 1,
        config.train.seed, mixture=data.mixture(config.data.temperature),
    )  # fmt: skip
    feed = micro_batches(
        data.windows["train"], sampler, step.prompt_builder, num_workers=1, max_epochs=1,
        first_step=0, profiler=NoProfiler(),
    )  # fmt: skip
    for batches in feed:
        yield from batches
