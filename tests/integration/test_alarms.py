"""Alarms of a training, in the file that wandb sends: a loss that is not finite, and a leak."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from dist_train import preflight, trainer
from dist_train.config import RunConfig
from dist_train.leak_alarm import LeakError
from dist_train.retrieval import Retriever
from dist_train.session import train_and_score
from dist_train.tracking_config import TrackingConfig
from memory_index.exclusion import Exclusion
from model.config import GramConfig
from tests.helpers import wandb_files
from tests.helpers.interrupted import quick
from tests.helpers.ranks import run_ranks
from tests.helpers.runs import tiny_run
from tests.helpers.wandb_files import exit_code, of_kind

BAD_STEP = 1  # counted from 0


def configure(folder: Path, name: str, **changes: Any) -> RunConfig:
    config = tiny_run(
        folder,
        name=name,
        tracking=TrackingConfig(wandb_mode="offline", panel_windows=0, checkpoint_artifact="none"),
        **{key: value for key, value in changes.items() if key == "gram"},
    )
    train = {key: value for key, value in changes.items() if key != "gram"}
    return replace(config, train=replace(config.train, max_steps=3, **train))


def spoil(patch: pytest.MonkeyPatch) -> None:
    """Make the loss of one step NaN."""
    total: Callable[..., Tensor] = trainer.total_loss

    def spoilt(terms: Any, step: int, warmup_steps: int) -> Tensor:
        return total(terms, step, warmup_steps) * (float("nan") if step == BAD_STEP else 1.0)

    patch.setattr(trainer, "total_loss", spoilt)


def train_all(rank: int, world_size: int, stops: RunConfig, skips: RunConfig, leaks: RunConfig):
    with pytest.MonkeyPatch.context() as patch:
        quick(patch)
        spoil(patch)
        with pytest.raises(FloatingPointError, match="in step 2"):
            train_and_score(stops, preflight.check(stops))
        train_and_score(skips, preflight.check(skips))
        nothing = Exclusion(seq_len=0, pred_len=0, past_only=False)
        patch.setattr(Retriever, "exclusion", lambda self, *, past_only: nothing)
        with pytest.raises(LeakError, match="overlap their query in time"):
            train_and_score(leaks, preflight.check(leaks))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[wandb_files.Record]]:
    folder = tmp_path_factory.mktemp("alarms")
    off = GramConfig(use_gram=False)
    configs = [
        configure(folder, "stops", gram=off),
        configure(folder, "skips", gram=off, on_nonfinite="skip"),
        # Retrieval beats repeat-last on this cycle anyway: only the window itself is far better.
        configure(
            folder,
            "leaks",
            gram=GramConfig(use_gram=True, top_k=1, retrieval_key="anchored", d_repr=48),
        ),
    ]
    run_ranks(train_all, 1, *configs, timeout_s=400)
    found = {}
    for config in configs:
        (file,) = wandb_files.files(config.run_folder)
        found[config.name] = wandb_files.records(file)
    return found


def test_a_loss_that_is_not_finite_ends_the_run_with_an_alarm(
    runs: dict[str, list[wandb_files.Record]],
):
    (alert,) = of_kind(runs["stops"], "alert")
    assert (alert["title"], alert["level"]) == ("loss is not finite", "ERROR")
    assert "The training loss is nan in step 2, on rank 0, windows " in alert["text"]
    assert exit_code(runs["stops"]) == 1


def test_a_step_that_is_left_out_is_an_alarm_and_the_run_goes_on(
    runs: dict[str, list[wandb_files.Record]],
):
    (alert,) = of_kind(runs["skips"], "alert")
    assert (alert["title"], alert["level"]) == ("loss is not finite", "WARN")
    assert alert["text"] == "step 2 was left out, its loss or gradient is not finite"
    assert exit_code(runs["skips"]) == 0
    counts = [row.get("train/steps_left_out") for row in wandb_files.rows(runs["skips"])]
    assert 1 in counts


def test_a_leak_ends_the_run_with_an_alarm(runs: dict[str, list[wandb_files.Record]]):
    (alert,) = of_kind(runs["leaks"], "alert")
    assert alert["level"] == "ERROR"
    assert "LeakError: leak: retrieval alone has " in alert["text"]
    assert exit_code(runs["leaks"]) == 1
