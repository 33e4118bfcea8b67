"""dist_train/scoring.py: evaluating again gives what the training reported, on the same data."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from dist_train.data.config import DataError
from dist_train.scoring import Evaluation, evaluate_run
from tests.helpers.ranks import run_ranks
from tests.helpers.runs import claim_other_data


def evaluate_to_file(rank: int, world_size: int, folder: Path, batch: int, out: Path) -> None:
    # Joined before: evaluate_run would otherwise start a group of its own.
    from dist_train import distributed

    distributed.shut_down = lambda: None  # type: ignore[assignment]  # the group is the harness's
    result = evaluate_run(Evaluation(run=folder, batch_size=batch))
    assert (result is None) == (rank != 0)
    if result is not None:
        (out / f"{world_size}-{batch}.json").write_text(json.dumps(result))


@pytest.mark.ranks
def test_the_test_score_does_not_depend_on_batch_size_or_ranks(finished_run: Path, tmp_path: Path):
    for world_size, batch in ((1, 64), (1, 7), (2, 32), (3, 2048)):
        run_ranks(evaluate_to_file, world_size, finished_run, batch, tmp_path, timeout_s=120)
    reported = json.loads((finished_run / "result.json").read_text())["scores"]
    files = list(tmp_path.glob("*.json"))
    assert len(files) == 4
    for path in files:
        scores = json.loads(path.read_text())["scores"]
        for name in ("Time-LLM", "ridge", "seasonal naive", "repeat last"):
            assert scores[name]["num_windows"] == reported[name]["num_windows"] == 109
            for key in ("mse", "mae", "rmse_original", "mase"):
                assert scores[name][key] == pytest.approx(reported[name][key], rel=1e-6)


def test_refuses_data_that_has_changed(finished_run: Path, tmp_path: Path):
    run = shutil.copytree(finished_run, tmp_path / "run")
    claim_other_data(run)
    with pytest.raises(DataError, match="not the one the run was trained on"):
        evaluate_run(Evaluation(run=run))
    assert not torch.distributed.is_initialized()


def test_refuses_a_batch_of_nothing(finished_run: Path):
    with pytest.raises(ValueError, match="--batch_size must be at least 1, got 0"):
        evaluate_run(Evaluation(run=finished_run, batch_size=0))
