"""dist_train/baseline_run.py: its rows are the forecasters' own scores, on every test window."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dist_train.baseline_names import BASELINES
from dist_train.baseline_run import check_names, main
from dist_train.baselines import fit_ridge, repeat_last, ridge_forecast
from dist_train.config import ConfigError, RunConfig, config_to_yaml, load_run_config
from dist_train.data.windows import load_forecast_data
from dist_train.evaluation import score_split
from dist_train.retrieval import Retriever
from dist_train.window_errors import read_window_errors
from tests.helpers.runs import tiny_run

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    run = tiny_run(tmp_path_factory.mktemp("baselines"), name="beside")
    return replace(run, train=replace(run.train, max_steps=3))


@pytest.fixture(scope="module")
def result(config: RunConfig) -> dict[str, Any]:
    """All of them, in a process of its own, as an ablation starts it."""
    file = Path(config.runs_dir).with_name("run.yaml")
    file.write_text(config_to_yaml(config))
    done = subprocess.run(
        [sys.executable, "-m", "dist_train.baseline_run", "--baselines", *BASELINES,
         "--config", str(file)],
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    printed = json.loads(done.stdout.splitlines()[-1])
    content: dict[str, Any] = json.loads((config.run_folder / "result.json").read_text())
    assert list(printed["test_mse"]) == list(content["rows"]) == list(BASELINES.values())
    return content


def test_the_scores_are_those_of_the_forecasters(config: RunConfig, result: dict[str, Any]):
    data = load_forecast_data(config.data)
    ridge = ridge_forecast(fit_ridge(data))
    for split, value in (
        ("test", lambda row: row["scores"]["mse"]), ("val_selection", lambda row: row["val_mse"])
    ):  # fmt: skip
        sums = score_split({"ridge": ridge, "repeat last": repeat_last}, data, split, batch_size=9)
        for name, total in sums.items():
            assert value(result["rows"][name]) == pytest.approx(total.mse(), rel=1e-5)


def test_retrieval_alone_is_the_weighted_mean_of_what_is_found(
    config: RunConfig, result: dict[str, Any]
):
    data = load_forecast_data(config.data)
    gram = replace(config.gram, retrieval_key="anchored")
    retriever = Retriever(data, gram, config.bank)
    retriever.refresh({})
    sums = score_split(
        {"alone": lambda batch: retriever.forecast(batch, "test")}, data, "test", batch_size=64
    )
    row = result["rows"]["retrieval alone"]
    assert row["scores"]["mse"] == pytest.approx(sums["alone"].mse(), rel=1e-5)
    assert result["rows"]["ridge + retrieval"]["scores"]["mse"] != row["scores"]["mse"]


def test_every_row_has_its_costs_and_the_error_of_each_window(
    config: RunConfig, result: dict[str, Any]
):
    errors = read_window_errors(config.run_folder / "window_errors.safetensors")
    data = load_forecast_data(config.data)
    for name, row in result["rows"].items():
        assert row["scores"]["num_windows"] == len(data.windows["test"])
        assert len(errors.mse[name]) == len(data.windows["test"])
        assert np.mean(errors.mse[name]) == pytest.approx(row["scores"]["mse"], rel=1e-5)
        assert row["train_s"] >= 0
    sizes = {name: row["trained_parameters"] for name, row in result["rows"].items()}
    assert sizes["ridge"] == 48 * 12
    assert sizes["ridge + retrieval"] == (48 + 12) * 12
    assert sizes["repeat last"] == 0
    assert sizes["PatchTST"] == 17_420  # and 80 of fixed places
    assert result["deterministic"] is False
    assert load_run_config(config.run_folder / "config.yaml") == config


def test_an_unknown_baseline_is_refused():
    with pytest.raises(ConfigError, match=r"--baselines rigde: give one or more of ridge, ridge_r"):
        check_names(["ridge", "rigde"])
    with pytest.raises(ConfigError, match="--baselines nothing"):
        check_names([])


def test_a_refusal_is_one_line_and_code_2(config: RunConfig, capsys: pytest.CaptureFixture[str]):
    assert main(["--baselines", "arima", "--data.path", str(config.data.path)]) == 2
    assert capsys.readouterr().err.startswith("error: --baselines arima: give one or more of")
