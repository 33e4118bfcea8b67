"""dist_train/scoring.py: evaluating again gives what the training reported, on the same data."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from dist_train import baselines, calibration
from dist_train.checkpoint import CheckpointError
from dist_train.data.config import DataError
from dist_train.data.windows import ForecastData
from dist_train.export import export_run
from dist_train.scoring import Evaluation, evaluate_run
from model.anchor_fit import AnchorFit
from tests.helpers.ranks import run_ranks
from tests.helpers.runs import claim_other_data


def test_the_saved_ridge_is_that_of_the_table(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """With several sources that is each one's own, not the one of all."""
    fit_ridges = baselines.fit_ridges

    def with_an_own(data: ForecastData) -> tuple[AnchorFit, tuple[AnchorFit, ...]]:
        joint, _ = fit_ridges(data)
        return joint, (replace(joint, weight=joint.weight / 2),)

    monkeypatch.setattr(baselines, "fit_ridges", with_an_own)
    monkeypatch.setattr(baselines, "DLINEAR_STEPS", 1)
    saved = tmp_path / "f.parquet"
    result = evaluate_run(Evaluation(run=finished_run, save_forecasts=saved))
    assert result is not None
    frame, scores = pd.read_parquet(saved), result["scores"]
    error = (frame["ridge"] - frame["y"]).abs().mean()
    assert error == pytest.approx(scores["ridge"]["mae_original"], rel=1e-5)
    assert error > 1.01 * scores["ridge of all"]["mae_original"]


def evaluate_to_file(rank: int, world_size: int, folder: Path, batch: int, out: Path) -> None:
    # Joined before: evaluate_run would otherwise start a group of its own.
    from dist_train import distributed

    distributed.shut_down = lambda: None  # type: ignore[assignment]  # the group is the harness's
    saved = out / f"{world_size}-{batch}.parquet"
    result = evaluate_run(Evaluation(run=folder, batch_size=batch, save_forecasts=saved))
    assert (result is None) == (rank != 0)
    if result is not None:
        (out / f"{world_size}-{batch}.json").write_text(json.dumps(result))


@pytest.mark.ranks
def test_the_test_score_does_not_depend_on_batch_size_or_ranks(finished_run: Path, tmp_path: Path):
    for world_size, batch in ((1, 64), (1, 7), (2, 32), (3, 2048)):
        run_ranks(evaluate_to_file, world_size, finished_run, batch, tmp_path, timeout_s=400)
    reported = json.loads((finished_run / "result.json").read_text())["scores"]
    files = list(tmp_path.glob("*.json"))
    assert len(files) == 4
    for path in files:
        scores = json.loads(path.read_text())["scores"]
        for name in ("Time-LLM", "ridge", "seasonal naive", "repeat last"):
            assert scores[name]["num_windows"] == reported[name]["num_windows"] == 109
            for key in ("mse", "mae", "rmse_original", "mase"):
                assert scores[name][key] == pytest.approx(reported[name][key], rel=1e-6)
        evaluated, trained = (json.loads(one.read_text()) for one in (
            path, finished_run / "result.json"))  # fmt: skip
        for level in (80, 95):
            key = f"coverage_{level}"
            assert evaluated[key] == pytest.approx(trained[key], abs=0.1)
        frame = pd.read_parquet(path.with_suffix(".parquet"))
        error = frame["forecast"] - frame["y"]
        assert np.sqrt((error**2).mean()) == pytest.approx(
            scores["Time-LLM"]["rmse_original"], rel=1e-5
        )
        assert (frame["ridge"] - frame["y"]).abs().mean() == pytest.approx(
            scores["ridge"]["mae_original"], rel=1e-5
        )
        within = frame["y"].between(frame["lo-80"], frame["hi-80"])
        assert 100 * within.mean() == pytest.approx(evaluated["coverage_80"], abs=0.05)


def test_the_terminal_shows_coverage_beside_the_scores(
    finished_run: Path, capsys: pytest.CaptureFixture[str]
):
    result = evaluate_run(Evaluation(run=finished_run))
    assert result is not None
    out = capsys.readouterr().out
    assert "| Time-LLM |" in out
    for level in (80, 95):
        assert f"| {level} % | {result[f'coverage_{level}']:.1f} % |" in out


def test_a_run_from_before_is_calibrated_once_and_keeps_it(finished_run: Path, tmp_path: Path):
    run = Path(shutil.copytree(finished_run, tmp_path / "run"))
    made = (run / calibration.FILE).read_bytes()
    (run / calibration.FILE).unlink()
    result = evaluate_run(Evaluation(run=run))
    known, again = calibration.load(run), calibration.load(finished_run)
    assert known is not None
    assert again is not None
    np.testing.assert_allclose(known.lower, again.lower, atol=1e-4)
    assert len((run / calibration.FILE).read_bytes()) == len(made)
    assert result is not None
    assert result["coverage_80"] == pytest.approx(
        json.loads((run / "result.json").read_text())["coverage_80"], abs=0.1
    )


def test_a_bad_place_for_forecasts_is_refused_before_the_run_is_opened(tmp_path: Path):
    asked = Evaluation(run=tmp_path / "no run", save_forecasts=tmp_path / "f.csv")
    with pytest.raises(ValueError, match="end the name in .parquet"):
        evaluate_run(asked)


def test_an_exported_folder_is_not_scored(finished_run: Path, tmp_path: Path):
    exported = export_run(finished_run, tmp_path / "model")
    with pytest.raises(CheckpointError, match=r"--run .*model: an exported folder cannot be scor"):
        evaluate_run(Evaluation(run=exported))


def test_refuses_data_that_has_changed(finished_run: Path, tmp_path: Path):
    run = shutil.copytree(finished_run, tmp_path / "run")
    claim_other_data(run)
    with pytest.raises(DataError, match="not the one the run was trained on"):
        evaluate_run(Evaluation(run=run))
    assert not torch.distributed.is_initialized()


def test_refuses_a_batch_of_nothing(finished_run: Path):
    with pytest.raises(ValueError, match="--batch_size must be at least 1, got 0"):
        evaluate_run(Evaluation(run=finished_run, batch_size=0))
