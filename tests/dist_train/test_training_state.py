"""dist_train/training_state.py: what the loop remembers comes back, on any number of ranks."""

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from dist_train.objective import TrainingSums
from dist_train.reproducibility import seed_everything
from dist_train.training_state import TrainingState, describe, gather_ranks, restore_rank
from tests.helpers.ranks import run_ranks


def some_sums(rank: int) -> TrainingSums:
    return TrainingSums(
        values={"train/loss": torch.tensor(1.5 + rank, dtype=torch.float64)},
        counts={
            "direction/classes": torch.tensor([1 + rank, 10]),
            "direction/correct": torch.tensor([1 + rank]),
        },
        weights={"train/weight_forecast": 1.0},
        num_batches=3,
    )


def draw() -> list[float]:
    return [random.random(), float(np.random.rand()), float(torch.rand(()))]


def test_all_but_the_tensors_goes_through_json():
    state = TrainingState(
        step=7, best_val_mse=0.25, best_step=5, best_bank="v", counter=2, validated_step=7,
        refreshed_step=6, memory_step=4, left_out=3, left_out_in_a_row=1, train_s=1.5,
        windows_timed=80, fit_s=2.5, sums=some_sums(0), lowest_val_mse=0.125,
        first_errors=[0.5, 1 / 3],
    )  # fmt: skip
    again = TrainingState.from_json(json.loads(json.dumps(state.to_json())))
    assert again.to_json() == state.to_json()
    assert (again.sums.num_batches, again.sums.weights) == (3, {"train/weight_forecast": 1.0})
    assert vars(again) == vars(state) | {"sums": again.sums}


def test_a_run_without_a_validation_is_plain_json_too():
    text = json.dumps(TrainingState().to_json(), allow_nan=False)
    again = TrainingState.from_json(json.loads(text))
    assert again.best_val_mse == again.lowest_val_mse == math.inf


def test_a_state_of_before_the_lowest_and_the_best_were_told_apart_goes_on():
    known = TrainingState(best_val_mse=0.25, lowest_val_mse=0.25).to_json()
    del known["lowest_val_mse"], known["first_errors"]
    again = TrainingState.from_json(known)
    assert (again.lowest_val_mse, again.first_errors) == (0.25, [])


def test_where_the_training_is_is_said_in_words():
    assert describe(TrainingState(step=3)) == "step 3"
    told = describe(TrainingState(step=3, best_val_mse=0.5, best_step=2))
    assert told == "step 3, best validation mse 0.5000 of step 2"


def save_and_restore(rank: int, world_size: int, folder: Path) -> None:
    seed_everything(100 + rank)
    known = gather_ranks(some_sums(rank))
    expected = draw()
    state = TrainingState()
    seed_everything(5)
    assert restore_rank(known, state, seed=1)
    assert draw() == expected
    torch.testing.assert_close(state.sums.tensors(), some_sums(rank).tensors())
    if rank == 0:
        torch.save(known, folder / f"{world_size}.pt")


def take_over(rank: int, world_size: int, folder: Path, before: int) -> None:
    known = torch.load(folder / f"{before}.pt", weights_only=True)
    state = TrainingState(step=4, sums=TrainingSums(num_batches=3))
    assert not restore_rank(known, state, seed=1)
    metrics = state.sums.reduce()
    # Means over all ranks that there were, whoever logs them now.
    mean = sum(1.5 + r for r in range(before)) / before
    assert metrics["train/loss"] == pytest.approx(mean / 3)
    ones = sum(1 + r for r in range(before))
    assert state.sums.counts["direction/classes"].tolist() == (
        [ones, 10 * before] if rank == 0 else [0, 0]
    )
    (folder / f"drawn-{before}-{world_size}-{rank}").write_text(json.dumps(draw()))


@pytest.mark.ranks
def test_the_ranks_find_their_generators_and_sums_again_and_other_ranks_get_their_own(
    tmp_path: Path,
):
    for ranks in (1, 2):
        run_ranks(save_and_restore, ranks, tmp_path)
    run_ranks(take_over, 1, tmp_path, 2)
    run_ranks(take_over, 2, tmp_path, 1)
    drawn = [(tmp_path / f"drawn-1-2-{rank}").read_text() for rank in (0, 1)]
    assert drawn[0] != drawn[1]


def test_other_micro_batches_of_the_same_steps_leave_every_mean_as_it_is():
    sums = some_sums(0)
    before = sums.reduce()
    sums.rescale(3, 6)  # one step so far, from now on in six parts
    assert sums.num_batches == 6
    assert sums.reduce()["train/loss"] == pytest.approx(before["train/loss"])
    exact = some_sums(0)
    exact.rescale(3, 3)
    assert torch.equal(exact.values["train/loss"], some_sums(0).values["train/loss"])


def test_every_field_is_kept():
    assert set(TrainingState().to_json()) == set(vars(TrainingState()))
