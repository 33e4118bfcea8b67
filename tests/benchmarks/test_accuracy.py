"""benchmarks/accuracy.py: a record is what the run scored, and the last line is what was asked."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import accuracy
from benchmarks.accuracy import main, record_of_run
from benchmarks.accuracy_records import write_record
from dist_train.config import ConfigError, config_to_yaml
from tests.benchmarks.test_accuracy_records import RECORD
from tests.helpers.runs import tiny_run

KEYS = {
    "dataset", "horizon", "model", "seeds", "deterministic", "mse_mean", "mse_std", "mae_mean",
    "ridge_mse",
}  # fmt: skip


def test_the_table_of_a_folder_ends_with_its_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    for seed in (1, 2):
        write_record(replace(RECORD, seed=seed), tmp_path)
    assert main(["--from-runs", str(tmp_path)]) == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert rows[0].keys() == KEYS
    assert (rows[0]["seeds"], rows[0]["mse_mean"], rows[0]["mse_std"]) == ([1, 2], 0.36, 0)
    monkeypatch.setattr(accuracy, "RESULTS", tmp_path)
    assert main(["--from-runs"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["rows"] == rows


def test_the_record_of_a_run_is_what_it_scored(finished_run: Path):
    record = record_of_run(finished_run, "own", "a command")
    result = json.loads((finished_run / "result.json").read_text())
    assert (record.dataset, record.horizon, record.seed) == ("series", 12, 2021)
    assert record.mse == result["scores"]["Time-LLM"]["mse"]
    assert record.mae == result["scores"]["Time-LLM"]["mae"]
    assert record.ridge_mse == result["scores"]["ridge"]["mse"]
    assert record.val_mse == result["val_mse"]
    assert record.num_windows == result["scores"]["Time-LLM"]["num_windows"]
    assert "CPU cores" in record.hardware


def test_a_record_says_what_makes_it_again_but_not_where_files_lie(
    finished_run: Path, tmp_path: Path
):
    out = tmp_path / "records"
    assert main(["--run", str(finished_run), "--model", "own", "--out", str(out)]) == 0
    (record,) = out.glob("*.json")
    command = f"python -m benchmarks.accuracy --run {finished_run} --model own"
    assert json.loads(record.read_text())["command"] == command
    options = accuracy._parser().parse_args([
        "--dataset", "ETTh1", "--horizon=96", "--data.root", "there", "--runs_dir", str(tmp_path),
        "--model", "patchtst", "--config", "a b.yaml", f"--out={out}", "--seed", "7",
    ])  # fmt: skip
    assert accuracy.command_from(options) == (
        "python -m benchmarks.accuracy --dataset ETTh1 --horizon 96 --model patchtst "
        "--config 'a b.yaml' --seed 7 --ranks 1"
    )


def test_a_folder_that_is_no_finished_run_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="holds no finished training; name the folder of one"):
        record_of_run(tmp_path, "own", "a command")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dataset", "ETTh9", "--horizon", "96", "--model", "best"],
         "--model best: there is no tuned preset for ETTh9 (configs/best_ETTh9.yaml)"),
        (["--dataset", "ETTh1", "--horizon", "96", "--model", "rigde"],
         "--model rigde: is none of best, ridge,"),
        (["--dataset", "ETTh1", "--model", "ridge"], "--dataset and --horizon are missing"),
        (["--dataset", "ETTh1", "--horizon", "96"], "--model is missing: give best, or one of"),
        (["--from-runs", "nowhere"], "--from-runs nowhere: holds no record"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_is_refused(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    assert main(options) == 2
    assert message in capsys.readouterr().err


def test_a_record_that_is_there_is_refused_before_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    write_record(replace(RECORD, model="ridge", seed=None), tmp_path)
    options = ["--dataset", "ETTh1", "--horizon", "96", "--model", "ridge", "--out", str(tmp_path)]
    assert main(options) == 2
    assert "ETTh1_96_ridge.json: there is a record of this run already" in capsys.readouterr().err


def test_a_record_is_looked_for_under_the_name_that_it_will_get(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    config = tiny_run(tmp_path)  # its series is a file: what the catalog calls it says nothing
    (tmp_path / "run.yaml").write_text(config_to_yaml(config))
    out = tmp_path / "records"
    write_record(replace(RECORD, dataset="series", horizon=12, model="ridge", seed=None), out)
    options = [
        "--config", str(tmp_path / "run.yaml"), "--dataset", "ETTh1", "--horizon", "12",
        "--model", "ridge", "--out", str(out), "--runs_dir", str(tmp_path / "runs"),
    ]  # fmt: skip
    assert main(options) == 2
    assert "series_12_ridge.json: there is a record of this run" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_quick_runs_for_real_and_keeps_nothing(capfd: pytest.CaptureFixture[str]):
    before = sorted(accuracy.RESULTS.iterdir())
    assert main(["--quick"]) == 0
    row = json.loads(capfd.readouterr().out.splitlines()[-1])["rows"][0]
    assert (row["dataset"], row["horizon"], row["model"]) == ("vic_elec", 24, "ridge")
    assert row["mse_mean"] == row["ridge_mse"]
    assert 0 < row["mse_mean"] < 1
    assert sorted(accuracy.RESULTS.iterdir()) == before
