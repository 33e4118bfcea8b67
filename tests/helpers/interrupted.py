"""Runs that are stopped and go on, each start in processes of its own."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from dist_train import baselines, preflight, report, stop_signals
from dist_train.config import RunConfig
from dist_train.session import Resume, train_and_score
from dist_train.stop_signals import StopRequestedError
from dist_train.trainer import Trainer
from memory_index import placement
from tests.helpers.ranks import run_ranks

Job = tuple[RunConfig, int | None, Resume | None]
"""A run, after how many steps it is asked to stop (None: it ends), and where it goes on."""


def quick(patch: pytest.MonkeyPatch) -> None:
    """Leave out what is not looked at here; let every rank have some entries of the memory."""
    patch.setattr(baselines, "fit_dlinear", lambda data, seed: baselines.repeat_last)
    patch.setattr(report, "draw_figures", lambda *given: {})
    patch.setattr(placement, "SMALLEST_CHUNK", 64)


def stopping_after(patch: pytest.MonkeyPatch, steps: int | None, rank: int, who: int) -> None:
    """Ask one rank to stop, as a signal does, while it does a step."""
    train_step: Callable[..., None] = Trainer._train_step

    def step_and_ask(trainer: Trainer, *given: object) -> None:
        train_step(trainer, *given)
        if trainer.state.step + 1 == steps and rank == who:
            patch.setattr(stop_signals, "_received", "SIGTERM")

    patch.setattr(Trainer, "_train_step", step_and_ask)


def do_jobs(rank: int, world_size: int, jobs: Sequence[Job]) -> None:
    """Do one job after the other; to be called through :func:`run_jobs`."""
    for config, steps, resume in jobs:
        with pytest.MonkeyPatch.context() as patch:
            quick(patch)
            stopping_after(patch, steps, rank, who=world_size - 1)
            if steps is None:
                train_and_score(config, preflight.check(config), resume)
            else:
                with pytest.raises(StopRequestedError):
                    train_and_score(config, preflight.check(config), resume)


def run_jobs(jobs: Sequence[Job], world_size: int = 1, timeout_s: float = 400) -> None:
    """Do jobs in fresh processes, one for each rank."""
    run_ranks(do_jobs, world_size, list(jobs), timeout_s=timeout_s)


def whole_and_stopped(
    run_of: Callable[[Path, str], RunConfig], folder: Path, cut: int
) -> dict[str, RunConfig]:
    """Run whole on one rank and on two, and stopped on two after ``cut`` steps and on with one."""
    configs = {name: run_of(folder, name) for name in ("one", "two", "stopped")}
    stop, go_on = interrupted(configs["stopped"], cut)
    run_jobs([(configs["two"], None, None), stop], 2)
    run_jobs([(configs["one"], None, None), go_on])
    return configs


def interrupted(config: RunConfig, steps: int) -> tuple[Job, Job]:
    """A run that is stopped after some steps, and the start that goes on with it."""
    return (config, steps, None), (config, None, Resume(where="auto"))
