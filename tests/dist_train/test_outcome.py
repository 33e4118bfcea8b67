"""dist_train/outcome.py: what a training leaves is what was measured of its best model."""

import json
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from dist_train import calibration
from dist_train.loading import load_run, load_training_data
from dist_train.run_folder import ERRORS_FILE, RESULT_FILE


def test_the_files_of_a_finished_run_say_the_same(finished_run: Path):
    result = json.loads((finished_run / RESULT_FILE).read_text())
    errors = load_file(finished_run / ERRORS_FILE)
    for name, row in result["scores"].items():
        assert errors[name].mean(dtype=float) == pytest.approx(row["mse"], rel=1e-5)
    assert result["test_mse"] == pytest.approx(result["scores"]["Time-LLM"]["mse"], abs=1e-6)
    assert result["coverage_80"] == pytest.approx(
        next(row["covered"] for row in result["intervals"] if row["level"] == 80), abs=0.01
    )
    assert f"{result['test_mse']:.4f}" in (finished_run / "report.md").read_text()


def test_the_calibration_is_that_of_the_best_model(finished_run: Path):
    run = load_run(finished_run)
    assert run.calibration is not None
    data = load_training_data(run.config, run.series)
    again = calibration.calibrate(
        lambda batch: run.forecast(batch, "val"), data, batch_size=16,
        prompt_builder=run.prompt_builder,
    )  # fmt: skip
    assert again.upper == pytest.approx(run.calibration.upper, rel=1e-3, abs=1e-3)
