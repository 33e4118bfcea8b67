"""A run that goes on with other ranks, or at another ZeRO stage, takes the same course."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dist_train.checkpoint import load_checkpoint
from dist_train.config import DeepSpeedConfig, RunConfig
from dist_train.trainer import Trainer
from memory_index.config import BankConfig
from model.config import GramConfig
from tests.helpers.interrupted import Job, do_jobs, interrupted
from tests.helpers.ranks import run_ranks
from tests.helpers.runs import tiny_run

pytestmark = [pytest.mark.ranks, pytest.mark.slow]

# Two epochs of seven steps begin; a bank is begun after step 4 and searched from step 7 on.
STEPS, CUT = 9, 5


def run_of(folder: Path, name: str, stage: int, micro: int | None = None) -> RunConfig:
    base = tiny_run(folder, name=name, bank=BankConfig(shard_group="world"))
    return replace(
        base,
        gram=GramConfig(use_gram=True, d_repr=16, refresh_every=4, refresh_lag=3),
        model=replace(base.model, anchor="none"),
        train=replace(
            base.train, batch_size=48, micro_batch_size=micro, max_steps=STEPS, log_every=2,
            eval_every=4,
        ),
        deepspeed=DeepSpeedConfig(zero_stage=stage),
    )  # fmt: skip


def do_and_record(rank: int, world_size: int, jobs: Sequence[Job], out: Path) -> None:
    """Do jobs, and write down which windows each step was given."""
    train_step: Callable[..., None] = Trainer._train_step

    def recorded(trainer: Trainer, batches: Any, *given: Any) -> None:
        ids = [int(number) for batch in batches for number in batch.window_ids]
        with (out / f"{trainer.config.name}.{rank}").open("a") as file:
            file.write(json.dumps([trainer.state.step, ids]) + "\n")
        train_step(trainer, batches, *given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_train_step", recorded)
        do_jobs(rank, world_size, jobs)


def windows_of(out: Path, name: str) -> dict[int, list[int]]:
    """The windows of each step, over all ranks."""
    steps: dict[int, list[int]] = {}
    for path in sorted(out.glob(f"{name}.*")):
        for step, ids in map(json.loads, path.read_text().splitlines()):
            steps[step] = sorted([*steps.get(step, []), *ids])
    return steps


def course(config: RunConfig) -> dict[tuple[int, str], float]:
    """Every number of the log that the arithmetic decides, by step and name."""
    lines = map(json.loads, (config.run_folder / "metrics.jsonl").read_text().splitlines())
    named = ("train/", "val/", "retrieval/gate", "retrieval/match", "retrieval/staleness")
    return {
        (line["step"], key): value
        for line in lines
        for key, value in line.items()
        if key.startswith(named) and key != "train/grad_norm"  # stage 0 in float32 takes none
    }


def test_other_ranks_and_other_stages_do_the_same_steps(tmp_path: Path):
    whole = run_of(tmp_path, "whole", 0)
    on_one: list[Job] = [(whole, None, None)]
    on_two_before: list[Job] = []
    on_two_after: list[Job] = []
    moved: list[RunConfig] = []
    # From how many ranks, which stage, to which stage; stage 3 is the last in each process:
    # DeepSpeed replaces torch's linear layers for the rest of a process then.
    for ranks, stage, later in ((2, 0, 2), (2, 2, 2), (2, 3, 0), (1, 1, 1), (1, 2, 3)):
        name = f"{ranks}-ranks-{stage}-{later}"
        first, _ = interrupted(run_of(tmp_path, name, stage), CUT)
        # On one rank in two parts: an odd step is cut, so the log's sums go over to them.
        config = run_of(tmp_path, name, later, micro=24 if ranks == 2 else None)
        second = interrupted(config, CUT)[1]
        moved.append(config)
        if ranks == 2:
            on_two_before.append(first)
            on_one.append(second)
        else:
            on_one.append(first)
            on_two_after.append(second)
    run_ranks(do_and_record, 2, on_two_before, tmp_path, timeout_s=400)
    run_ranks(do_and_record, 1, on_one, tmp_path, timeout_s=400)
    run_ranks(do_and_record, 2, on_two_after, tmp_path, timeout_s=400)

    expected, windows = course(whole), windows_of(tmp_path, "whole")
    assert {step for step, _ in expected} == {0, 2, 4, 6, 8, 9}
    last = load_checkpoint(whole.run_folder / f"step_{STEPS}")
    for config in moved:
        assert windows_of(tmp_path, config.name) == windows, config.name
        assert course(config) == pytest.approx(expected, rel=1e-5, abs=1e-6), config.name
        mine = load_checkpoint(config.run_folder / f"step_{STEPS}")
        for name, value in last.model.items():
            # A bias of keys has no gradient but rounding: softmax does not see it.
            if not name.endswith("key.bias"):
                torch.testing.assert_close(mine.model[name], value, rtol=1e-3, atol=1e-5, msg=name)
        assert mine.optimizer.keys() == last.optimizer.keys()
        assert mine.training["state"]["best_step"] == last.training["state"]["best_step"]
