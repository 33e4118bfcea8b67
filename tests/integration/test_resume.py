"""A run that is stopped and goes on is the run that was never stopped, bit for bit."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dist_train.checkpoint import load_checkpoint
from dist_train.config import DeepSpeedConfig, RunConfig
from dist_train.run_folder import step_folders
from dist_train.session import Resume
from memory_index.config import BankConfig
from model.config import GramConfig
from tests.helpers.interrupted import Job, interrupted, run_jobs
from tests.helpers.runs import numbers, tiny_run

pytestmark = pytest.mark.ranks

STEPS, CUT, EPOCH = 8, 5, 4
# A bank is begun after step 4 and searched from step 7 on: it is being built at the cut.
PENDING = GramConfig(use_gram=True, d_repr=16, refresh_every=4, refresh_lag=3)


def run_of(folder: Path, name: str, **changes: Any) -> RunConfig:
    """Two epochs of four steps, with dropout, metrics in pairs of steps and a pending bank."""
    base = tiny_run(folder, name=name, gram=PENDING, bank=BankConfig(shard_group="world"))
    train = replace(
        base.train, batch_size=90, max_steps=STEPS, log_every=2, eval_every=3, learning_rate=1e-2
    )
    model = replace(base.model, dropout=0.2, anchor="none")
    return replace(base, **{"train": train, "model": model, **changes})


def result_of(config: RunConfig) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((config.run_folder / "result.json").read_text())
    return content


def check_equal(whole: RunConfig, stopped: RunConfig) -> None:
    """Losses, weights, optimizer, random generators, place and scores are the same bits."""
    assert numbers(stopped.run_folder) == numbers(whole.run_folder), stopped.name
    one, two = (load_checkpoint(step_folders(c.run_folder)[0]) for c in (whole, stopped))
    assert one.step == two.step == STEPS
    for name in ("model", "optimizer", "memory", "memory_next", "closed_form", "ranks"):
        mine, theirs = getattr(one, name), getattr(two, name)
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[key], theirs[key]) for key in mine), name
    assert all(torch.isfinite(value).all() for value in one.optimizer.values())
    places = [{**c.training, "state": {**c.training["state"]}} for c in (one, two)]
    for place in places:
        for clock in ("fit_s", "train_s"):
            del place["state"][clock]
    assert places[0] == places[1]
    best = [load_checkpoint(c.run_folder / "best") for c in (whole, stopped)]
    assert all(torch.equal(best[0].model[key], best[1].model[key]) for key in best[0].model)
    clocks = {"run", "train_s", "total_s", "windows_per_s", "peak_rss_gib", "identity"}
    clocks |= {"seconds", "gib", "peak_device_gib"}
    results = [{k: v for k, v in result_of(c).items() if k not in clocks} for c in (whole, stopped)]
    assert results[0] == results[1]


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_resuming_is_as_if_nothing_had_happened_at_every_zero_stage(tmp_path: Path, ranks: int):
    cases: list[tuple[RunConfig, RunConfig]] = []
    for stage in (0, 1, 2, 3):
        for precision in ("fp32", "bf16"):
            if precision == "bf16" and (ranks, stage) not in ((1, 0), (2, 2)):
                continue
            both = [
                run_of(tmp_path, f"{word}-{stage}-{precision}",
                       deepspeed=DeepSpeedConfig(zero_stage=stage))
                for word in ("whole", "stopped")
            ]  # fmt: skip
            cases.append(tuple(  # type: ignore[arg-type]
                replace(c, train=replace(c.train, precision=precision)) for c in both
            ))  # fmt: skip
    first, second = zip(*(interrupted(two, CUT) for _, two in cases), strict=True)
    # Stage 3 comes last: DeepSpeed replaces torch's linear layers for the rest of a process then.
    whole: list[Job] = [(one, None, None) for one, _ in cases]
    run_jobs([job for pair in zip(whole, first, strict=True) for job in pair], ranks)
    for _, two in cases:
        checkpoint = load_checkpoint(two.run_folder / f"step_{CUT}")
        assert checkpoint.training["sampler"]["epoch"] == 1
        assert checkpoint.training["sampler"]["step"] == CUT - EPOCH
        assert checkpoint.memory_next
        assert checkpoint.training["state"]["sums"]["num_batches"] == 1
        assert not (two.run_folder / "result.json").exists()
    run_jobs(second, ranks)
    for one, two in cases:
        check_equal(one, two)


@pytest.mark.slow
def test_a_run_that_went_on_from_best_saves_its_last_step_too(tmp_path: Path):
    """As after a kill between the save of best/ and that of step_<n>, both after the last step."""
    whole, cut = run_of(tmp_path, "whole"), run_of(tmp_path, "cut")
    run_jobs([(whole, None, None)])
    shutil.copytree(whole.run_folder, cut.run_folder)
    best = load_checkpoint(cut.run_folder / "best")
    assert best.step == STEPS
    text = (cut.run_folder / "config.yaml").read_text()
    (cut.run_folder / "config.yaml").write_text(text.replace("name: whole", "name: cut"))
    (cut.run_folder / "result.json").unlink()
    shutil.rmtree(cut.run_folder / f"step_{STEPS}")
    run_jobs([(cut, None, Resume(where="auto"))])
    check_equal(whole, cut)
