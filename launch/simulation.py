"""A job of many ranks, step by step: every one computes at its own pace, collectives wait for all.

launch/step_time.py takes all ranks to be alike. Here each draws its compute time of each step from
a lognormal distribution, whose spread comes from measured steps (:func:`fit_spread`), so the ranks
wait for the slowest of many. Without spread both agree. Free of torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from launch.hardware import Hardware
from launch.network import Collective
from launch.step_time import StepTime, step_time
from launch.workload import Workload

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """What a simulated job did."""

    ranks: int

    mean_step_s: float
    """From the end of one step to the end of the next, the first left out."""

    windows_per_s: float

    efficiency: float
    """Windows per second and rank over those of one rank alone, with the same spread."""

    waited_s: float
    """Mean time of a step in which a rank waits for a slower one."""


def fit_spread(step_seconds: Sequence[float]) -> float:
    """Standard deviation of the logarithm of measured step times: a lognormal's spread.

    Raises:
        ValueError: Fewer than two times, or one that is not positive.
    """
    times = np.asarray(step_seconds, dtype=np.float64)
    if len(times) < 2 or not (times > 0).all():
        raise ValueError(
            f"step_seconds={list(step_seconds)}: pass at least two times, all of them above 0."
        )
    return float(np.log(times).std(ddof=1))


def simulate(
    workload: Workload,
    hardware: Hardware,
    ranks: int,
    *,
    steps: int = 200,
    seed: int = 0,
    alone: Workload | None = None,
) -> Simulation:
    """Run a job of so many ranks.

    A step of a rank begins when its last one is over and the neighbours of its batch are there.
    Forward and backward take the time drawn; what follows waits for all ranks. The search for the
    next batch begins with the step; its exchanges wait for all ranks too.

    Args:
        workload: Of one of the ranks.
        hardware: Its ``jitter`` is the spread.
        ranks: Of the job.
        steps: Simulated.
        seed: The same gives the same.
        alone: What one rank does in a job of its own, for the efficiency; default: the same
            windows, updating all parameters itself.
    """
    if steps < 2:
        raise ValueError(f"steps must be at least 2, got {steps}.")
    mean_s, waited_s = _run(step_time(workload, hardware, ranks), hardware.jitter, steps, seed)
    share = workload.windows / ranks
    if alone is None:
        parts = 1 if workload.zero_stage == 0 else ranks
        alone = replace(workload, optimizer_bytes=workload.optimizer_bytes * parts)
    else:
        share = alone.windows
    one_s, _ = _run(step_time(alone, hardware, 1), hardware.jitter, steps, seed)
    rate = workload.windows / mean_s
    return Simulation(
        ranks=ranks,
        mean_step_s=mean_s,
        windows_per_s=rate,
        efficiency=rate / ranks / (share / one_s),
        waited_s=waited_s,
    )


def _run(time: StepTime, jitter: float, steps: int, seed: int) -> tuple[float, float]:
    """Mean seconds of a step, and of waiting in it."""
    rng = np.random.default_rng(seed)
    beside = _seconds(time.collectives, overlaps=True)
    after = _seconds(time.collectives, overlaps=False) + time.optimizer_s
    exchanges_s = sum(one.seconds for one in time.search_collectives.values())
    processor_s = time.search_s - exchanges_s
    ends: list[float] = []
    waited = 0.0
    now = 0.0  # all ranks leave the last exchange of a step together
    found = np.zeros(time.ranks)
    for _ in range(steps):
        begins = np.maximum(now, found)
        pace = _draw(rng, jitter, time.ranks)
        ready = begins + np.maximum(pace * time.compute_s, beside) + time.search_taken_s
        searched = begins + processor_s
        found = searched if exchanges_s == 0 else np.full_like(searched, searched.max())
        found = found + exchanges_s
        waited += float((ready.max() - ready).mean())
        now = float(ready.max()) + after
        ends.append(max(now, float(found.max())))
    return (ends[-1] - ends[0]) / (steps - 1), waited / steps


def _draw(rng: np.random.Generator, jitter: float, ranks: int) -> Floats:
    """Factors of mean 1 on the compute time of each rank."""
    return rng.lognormal(-(jitter**2) / 2, jitter, ranks)


def _seconds(collectives: Mapping[str, Collective], *, overlaps: bool) -> float:
    return sum(one.seconds for one in collectives.values() if one.overlaps == overlaps)
