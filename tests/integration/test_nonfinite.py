"""Windows whose loss is not finite on one of two ranks: what is named, and what stays as it was."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dist_train import preflight, trainer
from dist_train.checkpoint import load_checkpoint
from dist_train.config import CheckpointConfig, DeepSpeedConfig, RunConfig
from dist_train.data.sampler import GlobalBatchSampler
from dist_train.data.windows import load_forecast_data
from dist_train.run_folder import step_folders
from dist_train.session import train_and_score
from dist_train.trainer import Trainer
from model.config import GramConfig, TaprConfig
from tests.helpers.interrupted import quick
from tests.helpers.ranks import run_ranks
from tests.helpers.runs import tiny_run

pytestmark = [pytest.mark.slow, pytest.mark.ranks]

STEPS, BAD_STEP, RANK, MICRO_BATCH = 7, 4, 1, 1


@dataclass(frozen=True, kw_only=True)
class Case:
    """A run, the windows that are bad, and what their loss is multiplied with."""

    config: RunConfig
    windows: frozenset[int]
    factor: float
    message: str = ""
    """What the run ends with; empty: it finishes."""

    steps_done: int = STEPS


def windows_of(config: RunConfig, step: int, rank: int, micro_batch: int) -> list[int]:
    """Windows of one micro-batch; micro-batches have two windows, two a step."""
    number = len(load_forecast_data(config.data).windows["train"])
    sampler = GlobalBatchSampler(number, 8, 2, rank, 2, config.train.seed)
    return list(list(sampler)[2 * (step - 1) + micro_batch])


def make_case(
    folder: Path, name: str, *, stage: int, on_nonfinite: str, factor: float = float("nan"),
    precision: str = "fp32", memory: bool = False, from_then_on: bool = False,
) -> Case:  # fmt: skip
    base = tiny_run(
        folder,
        name=name,
        deepspeed=DeepSpeedConfig(zero_stage=stage),
        checkpoint=CheckpointConfig(save_steps=1, save_total_limit=STEPS),
    )
    if not memory:
        off: dict[str, Any] = {"tapr": TaprConfig(use_tapr=False)}
        base = replace(base, gram=GramConfig(use_gram=False), **off)
    train: dict[str, Any] = {"on_nonfinite": on_nonfinite, "precision": precision}
    steps = 20 if from_then_on else STEPS
    config = replace(
        base,
        model=replace(base.model, anchor="none"),
        train=replace(
            base.train, micro_batch_size=2, max_steps=steps, log_every=2, eval_every=100,
            learning_rate=1e-2, **train,
        ),
    )  # fmt: skip
    bad = windows_of(config, BAD_STEP, RANK, MICRO_BATCH)[1:]
    if from_then_on:
        bad = [w for step in range(BAD_STEP, 20) for w in windows_of(config, step, RANK, 0)]
    word = {"nan": "nan", "inf": "inf"}[str(factor)]
    message = f"The training loss is {word} in step {BAD_STEP}, on rank {RANK}, windows "
    if from_then_on:
        message = f"in step {BAD_STEP + 9}, .* It is number 10 in a row"
    ends = on_nonfinite == "stop" or from_then_on
    return Case(
        config=config,
        windows=frozenset(bad),
        factor=factor,
        message=message if ends else "",
        steps_done=BAD_STEP - 1 if on_nonfinite == "stop" else BAD_STEP + 8 if ends else STEPS,
    )


def do_cases(rank: int, world_size: int, cases: Sequence[Case]) -> None:
    for case in cases:
        with pytest.MonkeyPatch.context() as patch:
            quick(patch)
            train(rank, case, patch)


def train(rank: int, case: Case, patch: pytest.MonkeyPatch) -> None:
    train_step, total_loss = Trainer._train_step, trainer.total_loss
    kept: dict[str, Any] = {}

    def spoiled(*given: Any) -> Tensor:
        loss = total_loss(*given)
        ids = kept["batches"].pop(0).window_ids.tolist()
        return loss * case.factor if rank == RANK and case.windows & set(ids) else loss

    def step(self: Trainer, batches: Any, *given: Any) -> None:
        kept["trainer"], kept["batches"] = self, list(batches)
        kept["before"] = state_of(self)
        train_step(self, batches, *given)
        kept["applied"] = self.state.left_out_in_a_row == 0
        if not kept["applied"]:
            check_equal(state_of(self), kept["before"])

    patch.setattr(Trainer, "_train_step", step)
    patch.setattr(trainer, "total_loss", spoiled)
    checked = preflight.check(case.config)
    if not case.message:
        train_and_score(case.config, checked)
        return
    with pytest.raises(FloatingPointError, match=case.message):
        train_and_score(case.config, checked)
    # After the failure as before the step, on every rank.
    mine: Trainer = kept["trainer"]
    assert mine.state.step == case.steps_done
    check_equal(state_of(mine), kept["before"])
    mine.writer.close()
    if rank == 0:
        newest = load_checkpoint(step_folders(case.config.run_folder)[0])
        assert newest.step == case.steps_done
        for name, value in kept["before"][0].items():
            if name in newest.model:
                assert torch.equal(newest.model[name], value)


def state_of(running: Trainer) -> tuple[dict[str, Tensor], Any]:
    tensors = running.engine.trained_parameters() | running.engine.optimizer_state()
    assert all(torch.isfinite(value).all() for value in tensors.values())
    return tensors, running.engine.progress()["scheduler"]


def check_equal(mine: Any, expected: Any) -> None:
    assert mine[1] == expected[1]
    assert all(torch.equal(mine[0][name], value) for name, value in expected[0].items())


def lines(config: RunConfig, file: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (config.run_folder / file).read_text().splitlines()]


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    folder = tmp_path_factory.mktemp("nonfinite")
    nan, inf = float("nan"), float("inf")
    wanted: dict[str, dict[str, Any]] = {
        "stop-0": {"stage": 0, "on_nonfinite": "stop", "factor": nan},
        "stop-2-bf16": {
            "stage": 2, "on_nonfinite": "stop", "factor": inf, "precision": "bf16",
        },
        "skip-0": {"stage": 0, "on_nonfinite": "skip", "factor": nan},
        "skip-0-bf16": {"stage": 0, "on_nonfinite": "skip", "factor": nan, "precision": "bf16"},
        "skip-1": {"stage": 1, "on_nonfinite": "skip", "factor": inf},
        "skip-2": {"stage": 2, "on_nonfinite": "skip", "factor": nan},
        "skip-2-memory": {"stage": 2, "on_nonfinite": "skip", "factor": nan, "memory": True},
        "ten": {"stage": 1, "on_nonfinite": "skip", "factor": nan, "from_then_on": True},
        # Stage 3 comes last: it replaces torch's linear layers for the rest of the process.
        "stop-3": {"stage": 3, "on_nonfinite": "stop", "factor": nan},
        "skip-3": {"stage": 3, "on_nonfinite": "skip", "factor": nan},
    }  # fmt: skip
    made = {name: make_case(folder, name, **settings) for name, settings in wanted.items()}
    run_ranks(do_cases, 2, list(made.values()), timeout_s=400)
    return made


SKIPPED = ("skip-0", "skip-0-bf16", "skip-1", "skip-2", "skip-2-memory", "skip-3")


@pytest.mark.parametrize("name", ["stop-0", "stop-2-bf16", "stop-3", *SKIPPED])
def test_exactly_the_bad_micro_batch_is_written_down(cases: dict[str, Case], name: str):
    case = cases[name]
    (line,) = lines(case.config, "nonfinite.jsonl")
    assert (line["step"], line["rank"]) == (BAD_STEP, RANK)
    assert line["loss"] == str(case.factor)
    ids = windows_of(case.config, BAD_STEP, RANK, MICRO_BATCH)
    data = load_forecast_data(case.config.data)
    for window, number in zip(line["windows"], ids, strict=True):
        series, row = data.windows["train"].locate(number)
        assert window == {
            "window": number, "series": data.series_set.series[series].id, "row": row,
        }  # fmt: skip


@pytest.mark.parametrize("name", SKIPPED)
def test_a_run_that_leaves_a_step_out_goes_on_and_counts_it(cases: dict[str, Case], name: str):
    config = cases[name].config
    assert json.loads((config.run_folder / "result.json").read_text())["steps"] == STEPS
    trained = [line for line in lines(config, "metrics.jsonl") if "train/loss" in line]
    assert [line["step"] for line in trained] == [2, 4, 6, 7]
    assert [line.get("train/steps_left_out") for line in trained] == [None, 1, 1, 1]
    checkpoint = load_checkpoint(step_folders(config.run_folder)[0])
    assert checkpoint.training["state"]["left_out"] == 1
    assert checkpoint.training["engine"]["scheduler"]["last_epoch"] == STEPS - 1
    steps = {float(v) for k, v in checkpoint.optimizer.items() if k.startswith("step.")}
    assert steps == {STEPS - 1}


def test_what_is_left_out_is_the_same_at_every_stage(cases: dict[str, Case]):
    courses = []
    for stage in (0, 1, 2, 3):
        metrics = lines(cases[f"skip-{stage}"].config, "metrics.jsonl")
        keys = ("train/loss", "val/mse", "train/learning_rate")
        courses.append([line[key] for line in metrics for key in keys if key in line])
    for course in courses[1:]:
        assert course == pytest.approx(courses[0], rel=1e-4)


def test_no_checkpoint_is_poisoned(cases: dict[str, Case]):
    for case in cases.values():
        folders = step_folders(case.config.run_folder)
        assert len(folders) == min(case.steps_done, STEPS)
        for folder in (*folders, case.config.run_folder / "best"):
            checkpoint = load_checkpoint(folder)
            for tensors in (checkpoint.model, checkpoint.optimizer):
                assert all(torch.isfinite(value).all() for value in tensors.values())


def test_ten_in_a_row_end_the_run_and_are_all_written_down(cases: dict[str, Case]):
    case = cases["ten"]
    written = lines(case.config, "nonfinite.jsonl")
    assert [line["step"] for line in written] == list(range(BAD_STEP, BAD_STEP + 10))
    assert not (case.config.run_folder / "result.json").exists()
