"""Part ``loading`` of the scaling benchmark: what a step waits for its batch.

Steps whose batches come from a corpus on the disk, through a worker, take turns with steps on
batches that lie in memory.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.retrieval_step import EngineStep
from dist_train import precision
from dist_train.config import RunConfig, load_run_config
from dist_train.data.collate import WindowBatch
from dist_train.data.sampler import GlobalBatchSampler
from dist_train.data.windows import ForecastData, load_forecast_data
from dist_train.profiler import NoProfiler
from dist_train.step_feed import micro_batches

TURN = 24
"""Steps of a turn."""
AHEAD = 8
"""First steps of a turn, not timed: their batches were loaded while the other kind had its turn."""


def measure(rank: int, world_size: int, file: str, turns: int) -> dict[str, Any]:
    """Time both kinds of steps in turn; on one rank.

    Args:
        rank: Of this process.
        world_size: 1.
        file: Configuration of the training.
        turns: Of each kind.

    Returns:
        ``loading_overhead``: how much longer a step is whose batch is loaded, as a share.
    """
    config = load_run_config(Path(file))
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
                if number == AHEAD:
                    began = time.perf_counter()
                step.step(batch, None, turn * TURN + number)
            times.append(time.perf_counter() - began)
        if turn:  # the first warms both up
            ratios.append(times[0] / times[1])
    return {
        "loading_overhead": float(np.median(ratios)) - 1,
        "step_ms": 1000 * times[1] / (TURN - AHEAD),
    }


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
