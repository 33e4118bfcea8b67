"""Training as a whole: the same on any number of ranks, nothing frozen moves, the anchor holds."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dist_train import engine, preflight
from dist_train.config import DeepSpeedConfig, RunConfig
from dist_train.session import train_and_score
from model.backbone_files import locate_backbone
from model.backbone_loading import load_backbone
from model.config import GramConfig, TaprConfig
from tests.helpers.ranks import run_ranks
from tests.helpers.runs import STEPS, losses, tiny_run, train_runs

pytestmark = pytest.mark.ranks


@pytest.mark.parametrize(
    "both", [pytest.param(False, marks=pytest.mark.slow), True], ids=["baseline", "tapr-and-gram"]
)
def test_two_ranks_train_like_one_at_every_zero_stage(tmp_path: Path, both: bool):
    for ranks in (1, 2):
        configs = [
            tiny_run(
                tmp_path,
                name=f"stage{stage}-ranks{ranks}",
                deepspeed=DeepSpeedConfig(zero_stage=stage),
                tapr=TaprConfig(use_tapr=both),
                gram=GramConfig(use_gram=both, d_repr=16),
            )
            for stage in (0, 1, 2, 3)
        ]
        train_runs(configs, ranks)

    for stage in (0, 1, 2, 3):
        one, two = (tmp_path / "runs" / f"stage{stage}-ranks{ranks}" for ranks in (1, 2))
        assert len(losses(one)) == STEPS
        assert losses(two) == pytest.approx(losses(one), abs=1e-5)
        results = [json.loads((run / "result.json").read_text()) for run in (one, two)]
        assert results[1]["test_mse"] == pytest.approx(results[0]["test_mse"], abs=1e-5)
        ridge = [result["scores"]["ridge"]["mse"] for result in results]
        assert ridge[1] == pytest.approx(ridge[0], rel=1e-9)


@pytest.mark.slow
def test_offload_changes_nothing(tmp_path: Path):
    runs = [
        tiny_run(tmp_path, name=offload, deepspeed=DeepSpeedConfig(zero_stage=3, offload=offload))
        for offload in ("none", "optimizer", "all")
    ]
    train_runs(runs, 2)
    none, optimizer, everything = (losses(run.run_folder) for run in runs)
    assert optimizer == pytest.approx(none, abs=1e-6)
    assert everything == pytest.approx(none, abs=1e-6)


def train_and_compare_backbone(rank: int, world_size: int, config: RunConfig) -> None:
    before = weights_of_backbone(config)
    seen: dict[str, torch.Tensor] = {}
    keep_backbone_of_last_engine(seen)
    train_and_score(config, preflight.check(config))
    assert seen.keys() == before.keys()
    for name, value in before.items():
        assert torch.equal(seen[name], value), f"{name} has moved"


def weights_of_backbone(config: RunConfig) -> dict[str, torch.Tensor]:
    """The backbone's weights as they are on disk, cut to the layers of the run."""
    backbone = load_backbone(config.backbone, locate_backbone(config.backbone.name))
    return {name: value.clone() for name, value in backbone.state_dict().items()}


def keep_backbone_of_last_engine(seen: dict[str, torch.Tensor]) -> None:
    """Copy the backbone's weights out of the engine just before it is closed."""
    close = engine.Engine.close

    def copy_then_close(self: engine.Engine) -> None:
        backbone = self.module.get_submodule("backbone")
        seen.update({name: value.clone() for name, value in backbone.state_dict().items()})
        close(self)

    engine.Engine.close = copy_then_close  # type: ignore[method-assign]


def test_the_backbone_is_bit_identical_after_training(tmp_path: Path):
    run_ranks(train_and_compare_backbone, 1, tiny_run(tmp_path), timeout_s=400)


@pytest.mark.parametrize("anchor", ["ridge", "ridge_retrieval"])
def test_a_run_with_the_anchor_ends_no_worse_than_the_ridge_on_validation(
    tmp_path: Path, anchor: str
):
    base = tiny_run(tmp_path)
    hasty = replace(base.train, learning_rate=0.5, max_steps=4)  # training harms
    config = replace(
        base,
        train=hasty,
        model=replace(base.model, anchor=anchor),
        gram=GramConfig(use_gram=True, retrieval_key="anchored", d_repr=16),
    )
    train_runs([config])
    result = json.loads((tmp_path / "runs/run/result.json").read_text())
    assert result["val_mse"] <= result["ridge_val_mse"] * (1 + 1e-6)
    assert result["best_step"] == 0
    if anchor == "ridge":
        assert result["test_mse"] == pytest.approx(result["ridge_mse"], rel=1e-5)


def test_gradient_accumulation_changes_nothing(tmp_path: Path):
    whole = tiny_run(tmp_path, name="whole")
    pieces = tiny_run(tmp_path, name="pieces", train=replace(whole.train, micro_batch_size=2))
    train_runs([whole, pieces])
    one, two = (losses(tmp_path / "runs" / name) for name in ("whole", "pieces"))
    assert two == pytest.approx(one, abs=1e-5)


def test_two_runs_give_the_same_numbers(tmp_path: Path):
    dropout = replace(tiny_run(tmp_path).model, dropout=0.2)
    runs = [tiny_run(tmp_path, name=name, model=dropout) for name in ("first", "second")]
    train_runs(runs)
    one, two = (losses(tmp_path / "runs" / run.name) for run in runs)
    assert one == two


def test_bf16_trains(tmp_path: Path):
    config = tiny_run(tmp_path, train=replace(tiny_run(tmp_path).train, precision="bf16"))
    train_runs([config], 2)
    settings = json.loads((tmp_path / "runs/run/deepspeed.json").read_text())
    assert settings["bf16"]["enabled"]
    assert all(math.isfinite(loss) for loss in losses(tmp_path / "runs/run"))


def test_training_lowers_the_loss(tmp_path: Path):
    eager = replace(tiny_run(tmp_path).train, learning_rate=2e-2, max_steps=40)
    train_runs([tiny_run(tmp_path, train=eager)])
    seen = losses(tmp_path / "runs/run")
    assert sum(seen[-8:]) < 0.95 * sum(seen[:8])
