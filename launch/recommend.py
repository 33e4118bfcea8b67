"""Settings with which a run fits a given memory: down the ladder of dist_train/memory_ladder.py.

The batch goes first, as far as it does: smaller micro-batches keep the batch of a step, though
dropout draws other numbers and the losses of a memory's gate are of smaller parts. Then every other
rung is taken once, in the ladder's order, before one is taken twice; a rung that would save less
than a hundredth of what the run needs is left out, as it would cost and not help.
"""

from collections.abc import Callable
from dataclasses import dataclass

from dist_train.config import RunConfig
from dist_train.memory_ladder import Rung, go_down, rungs, same_numbers
from launch.memory_plan import MemoryPlan

WORTH_IT = 0.01
RESERVE = 0.1
"""Assumed: what an allocator loses between blocks, and what the plan is off by."""

BATCH_KEYS = ("train.micro_batch_size", "train.eval_batch_size")
# What a phase of the plan is called in the ladder.
PHASES = {"training": None, "optimizer": "optimizer", "evaluation": "evaluation", "bank": "bank",
          "loading": "backbone", "engine start": "engine"}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """How a run can be made to fit."""

    config: RunConfig
    """With the rungs taken."""

    taken: tuple[Rung, ...]
    """Empty where the run fits as it is."""

    plan: MemoryPlan
    """Of that configuration."""

    fits: bool

    alternatives: tuple[tuple[Rung, MemoryPlan], ...]
    """Settings that leave the model as it is, and what the run would need with each."""


def fits(plan: MemoryPlan, limit: float) -> bool:
    """Whether a plan leaves its reserve of a memory of ``limit`` bytes."""
    return plan.total <= (1 - RESERVE) * limit


def recommend(
    config: RunConfig,
    plan_of: Callable[[RunConfig], MemoryPlan],
    limit: float,
    *,
    ranks: int = 1,
    on_gpu: bool = True,
) -> Recommendation:
    """Go down the ladder until a run fits.

    Args:
        config: The run as asked for.
        plan_of: Plans the memory of a configuration.
        limit: Bytes of memory of one rank.
        ranks: Of the job.
        on_gpu: Whether it is a GPU's.
    """
    plan = plan_of(config)
    if fits(plan, limit):
        return Recommendation(config=config, taken=(), plan=plan, fits=True, alternatives=())
    alternatives = []
    for rung in _without_another_model(config, plan, ranks, on_gpu):
        other = plan_of(go_down(config, rung))
        if other.total < (1 - WORTH_IT) * plan.total:
            alternatives.append((rung, other))
    taken: list[Rung] = []
    while not fits(plan, limit):
        before = len(taken)
        config, plan = _one_round(config, plan, plan_of, limit, ranks, taken)
        if len(taken) == before:
            break
    return Recommendation(
        config=config, taken=tuple(taken), plan=plan, fits=fits(plan, limit),
        alternatives=tuple(alternatives),
    )  # fmt: skip


def _without_another_model(
    config: RunConfig, plan: MemoryPlan, ranks: int, on_gpu: bool
) -> list[Rung]:
    found: dict[str, Rung] = {}
    for phase in ("forward", "engine", "bank"):
        for rung in same_numbers(config, phase, ranks, on_gpu=on_gpu):
            found.setdefault(rung.options, rung)
    return list(found.values())


def _one_round(
    config: RunConfig,
    plan: MemoryPlan,
    plan_of: Callable[[RunConfig], MemoryPlan],
    limit: float,
    ranks: int,
    taken: list[Rung],
) -> tuple[RunConfig, MemoryPlan]:
    """Take every rung that helps once, batches as often as they do."""
    tried: set[str] = set()
    while not fits(plan, limit):
        # Asked anew after each: another phase may need most now, and other rungs act on it.
        step = next(
            (
                rung
                for rung in rungs(config, PHASES[plan.peak_phase], ranks)
                if next(iter(rung.settings)) not in tried
            ),
            None,
        )
        if step is None:
            break
        key = next(iter(step.settings))
        lower = go_down(config, step)
        lower_plan = plan_of(lower)
        if lower_plan.total > (1 - WORTH_IT) * plan.total:
            tried.add(key)
            continue
        config, plan = lower, lower_plan
        taken.append(step)
        if key not in BATCH_KEYS:
            tried.add(key)
    return config, plan
