"""launch/check.py: a job is checked once before its ranks start."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dist_train import run_folder
from dist_train.config import RunConfig, config_to_yaml
from launch.check import FINISHED, main
from tests.helpers.runs import tiny_run

ROOT = Path(__file__).parents[2]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    monkeypatch.setenv("WORLD_SIZE", "1")  # and is set back
    config = tiny_run(tmp_path)
    (tmp_path / "run.yaml").write_text(config_to_yaml(config))
    return config


def check(folder: Path, *further: str, ranks: str = "2") -> int:
    return main([ranks, "--config", str(folder / "run.yaml"), "--resume", "auto", *further])


def test_a_good_run_passes_and_nothing_is_written(tmp_path: Path, config: RunConfig):
    assert check(tmp_path) == 0
    assert not config.run_folder.exists()


def test_a_bad_one_is_refused(
    tmp_path: Path, config: RunConfig, capsys: pytest.CaptureFixture[str]
):
    assert check(tmp_path, ranks="3") == 2
    assert "train.batch_size=8 does not divide over 3 ranks" in capsys.readouterr().err
    assert check(tmp_path, "--data.path", "no-such-file.csv") == 2


def finish(config: RunConfig) -> dict[str, int]:
    """Lay down what a finished run leaves; its result."""
    config.run_folder.mkdir(parents=True)
    (config.run_folder / "config.yaml").write_text(config_to_yaml(config))
    result = dict.fromkeys(run_folder.RESULT_KEYS, 1)
    (config.run_folder / run_folder.RESULT_FILE).write_text(json.dumps(result))
    return result


def test_one_that_has_finished_is_not_started(
    tmp_path: Path, config: RunConfig, capsys: pytest.CaptureFixture[str]
):
    result = finish(config)
    assert check(tmp_path) == FINISHED
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == result


def test_one_that_has_finished_is_started_where_more_of_it_is_asked_for(
    tmp_path: Path, config: RunConfig, capsys: pytest.CaptureFixture[str]
):
    finish(config)
    assert check(tmp_path, "--train.patience", "99") == 2
    assert "has kept no step_<n> to go on from" in capsys.readouterr().err
    (config.run_folder / "step_20").mkdir()
    (config.run_folder / "step_20/manifest.json").touch()
    assert check(tmp_path) == FINISHED
    assert check(tmp_path, "--train.patience", "99") == 0
    assert check(tmp_path, "--resume_counter", "0") == 0
    assert check(tmp_path, "--resume", str(config.run_folder / "step_20")) == 0


@pytest.mark.parametrize("ranks", ["two", "0", "-1"])
def test_what_is_no_number_of_ranks_is_refused(
    ranks: str, tmp_path: Path, config: RunConfig, capsys: pytest.CaptureFixture[str]
):
    assert check(tmp_path, ranks=ranks) == 2
    assert f"error: RANKS={ranks}: give the number of ranks" in capsys.readouterr().err


@pytest.mark.parametrize("cores", ["96", "12", ""])
def test_a_job_that_was_given_the_cores_of_one_task_is_refused_by_its_script(cores: str):
    environment = {
        "PATH": os.environ["PATH"], "SLURM_JOB_ID": "1", "SLURM_SUBMIT_DIR": str(ROOT),
        "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "a,b", "SLURM_GPUS_ON_NODE": "8",
        "SLURM_CPUS_PER_TASK": "12", "TIMELLM_PYTHON": sys.executable,
        **({"SLURM_CPUS_ON_NODE": cores} if cores else {}),
    }  # fmt: skip
    script = ["bash", str(ROOT / "launch/slurm.sbatch"), "no-such-file.yaml"]
    done = subprocess.run(script, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2  # and without cause because there is no such file
    refused = "submit it with --ntasks-per-node=8" in done.stderr
    assert refused is (cores == "12")
    assert ("16 ranks on a,b" in done.stderr) is not refused
