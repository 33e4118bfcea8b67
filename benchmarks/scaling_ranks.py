"""Part ``ranks`` of the scaling benchmark: windows per second of 1, 2 and 4 ranks, with a memory.

Every rank has a core to itself, as far as there are cores; the same windows per rank on any number
of them. Jobs of one rank, one on each core at once, say what the cores lose to each other. The
simulation (launch/simulation.py) is given what one rank measured, that loss and gloo's bandwidth,
and says what more ranks should do.
"""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.rank_processes import run_on_ranks
from benchmarks.retrieval_step import EngineStep
from benchmarks.step_time import CALLS, KINDS, RANKS, fit_link, this_machine
from benchmarks.step_time_ranks import LARGE, SMALL, collective_s
from dist_train import distributed, precision
from dist_train.config import RunConfig, load_run_config
from dist_train.data.collate import Collator, WindowBatch
from dist_train.data.windows import load_forecast_data
from dist_train.flops import MicroBatch
from dist_train.retrieval import Retriever
from dist_train.shapes import shape_of
from launch.simulation import fit_spread, simulate
from launch.workload import Workload, workload_of
from memory_index.config import BankConfig
from model.backbone_files import locate_backbone
from model.config import GramConfig

ENTRIES = 100_000
"""Of the memory."""
SEARCHES = 10


def measure(file: str, steps: int, rounds: int) -> dict[str, Any]:
    """Measure all numbers of ranks in turn, and predict them.

    Args:
        file: Configuration of the training.
        steps: Of each measurement.
        rounds: Measurements of each number of ranks.

    Returns:
        ``weak_scaling_N``: windows per second of N ranks over those of one; ``cores_N``: what a job
        on each of the N cores reaches, that knows nothing of the others, over one alone;
        ``predicted_N``: of the simulation. Medians over the rounds.
    """
    cores = len(os.sched_getaffinity(0))
    found: dict[str, list[float]] = {}
    for number in range(rounds):
        by_ranks = {ranks: run_on_ranks(measure_rank, ranks, file, steps, 0) for ranks in RANKS}
        with ThreadPoolExecutor(cores) as pool, TemporaryDirectory() as meeting:
            jobs = [
                pool.submit(run_on_ranks, measure_rank, 1, file, steps, core, meeting, cores)
                for core in range(cores)
            ]
            side_by_side = [job.result()[0]["windows_per_s"] for job in jobs]
        one = by_ranks[1][0]
        kept = sum(side_by_side) / one["windows_per_s"]
        found.setdefault(f"cores_{cores}", []).append(kept)
        for ranks, measured in by_ranks.items():
            ratio = measured[0]["windows_per_s"] / one["windows_per_s"]
            found.setdefault(f"weak_scaling_{ranks}", []).append(ratio)
            share = min(1.0, kept / cores) if ranks > 1 else 1.0
            there = min(ranks, cores) * share
            predicted = _predict(file, one, by_ranks, ranks, there)
            found.setdefault(f"predicted_{ranks}", []).append(predicted / one["windows_per_s"])
        told = {ranks: round(each[0]["windows_per_s"], 1) for ranks, each in by_ranks.items()}
        apart = [round(speed, 1) for speed in side_by_side]
        print(f"round {number + 1}: windows/s {told}, side by side {apart}", flush=True)
    return {name: float(np.median(values)) for name, values in found.items()}


def measure_rank(
    rank: int, world_size: int, file: str, steps: int, first_core: int, meeting: str = "",
    jobs: int = 1,
) -> dict[str, Any]:  # fmt: skip
    """Train on a core of its own, with a memory that is searched for every batch; collective.

    Args:
        rank: Of this process.
        world_size: Of the job.
        file: Configuration of the training.
        steps: How many.
        first_core: Of the first rank.
        meeting: Folder in which jobs wait for each other, so that they train at the same time.
        jobs: How many there are.

    Returns:
        ``windows_per_s`` of all ranks together; what a step and a search take alone; the seconds
        of collectives, where there are other ranks.
    """
    cores = sorted(os.sched_getaffinity(0))
    for thread in Path("/proc/self/task").iterdir():  # those of gloo among them
        os.sched_setaffinity(int(thread.name), {cores[(first_core + rank) % len(cores)]})
    config = _config(file)
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
    batch = batch_of(0)
    ahead = retriever.retrieve_ahead(batch, "train")
    distributed.barrier()
    if meeting:
        (Path(meeting) / str(first_core)).touch()
        while len(list(Path(meeting).iterdir())) < jobs:
            time.sleep(0.01)
    for number in range(steps):
        began = time.perf_counter()
        following = batch_of(number + 1)
        neighbours = ahead.result()
        ahead = retriever.retrieve_ahead(following, "train")
        step.step(batch, neighbours, number)
        batch = following
        distributed.barrier()
        times.append(time.perf_counter() - began)
    neighbours = ahead.result()
    alone = [_seconds(lambda: step.step(batch, neighbours, steps)) for _ in range(SEARCHES)]
    searched = [_seconds(lambda: retriever.retrieve(batch, "train")) for _ in range(SEARCHES)]
    collectives = {
        f"{kind} {size}": collective_s(kind, size, CALLS[size])
        for kind in KINDS
        for size in (SMALL, LARGE)
        if world_size > 1
    }
    retriever.close()
    return {
        "windows_per_s": share * world_size / float(np.median(times[steps // 4 :])),
        "step_s": alone,
        "search_s": float(np.median(searched)),
        "collectives": collectives,
    }


def _seconds(work: Any) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _config(file: str) -> RunConfig:
    config = load_run_config(Path(file))
    return replace(
        config,
        gram=GramConfig(use_gram=True, retrieval_key="anchored", top_k=5),
        bank=BankConfig(max_memory_size=ENTRIES),
        model=replace(config.model, prompt="none"),
    )


def _predict(
    file: str,
    one: dict[str, Any],
    by_ranks: dict[int, list[dict[str, Any]]],
    ranks: int,
    cores: float,
) -> float:
    """Windows per second of so many ranks, simulated from what one of them measured."""
    config = _config(file)
    work = _workload(config, ranks)
    collectives = {
        (others, kind, size): max(each["collectives"][f"{kind} {size}"] for each in measured)
        for others, measured in by_ranks.items()
        for kind in KINDS
        for size in (SMALL, LARGE)
        if others > 1
    }
    hardware = this_machine(
        work,
        fit_link(collectives, len(os.sched_getaffinity(0))),
        compute_s=float(np.median(one["step_s"])),
        search_s=one["search_s"],
        memory_bytes_per_s=1e15,  # the update is in the step
        cores=cores,
        jitter=fit_spread(one["step_s"]),
    )
    alone = _workload(config, 1)
    return simulate(work, hardware, ranks, alone=alone).windows_per_s


def _workload(config: RunConfig, ranks: int) -> Workload:
    """Of one rank; the same windows per rank on any number of them."""
    share = config.train.batch_size
    config = replace(config, train=replace(config.train, batch_size=share * ranks))
    files = locate_backbone(config.backbone.name)
    return workload_of(
        config,
        shape_of(files.config, config.backbone.llm_layers),
        ranks,
        variates=1,
        bank_entries=ENTRIES,
        ranks_per_node=max(RANKS),
        item_bytes=4,
        on_gpu=False,
        batch=MicroBatch(windows=share, variates=1, prompt_tokens=0),
    )
