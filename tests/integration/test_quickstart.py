"""The main job, as `make train` runs it: real weights, real series, DeepSpeed ranks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def start(runs: Path) -> subprocess.CompletedProcess[str]:
    binaries = str(Path(sys.executable).parent)
    environment = os.environ | {"PATH": f"{binaries}:{os.environ['PATH']}"}
    command = ["launch/local.sh", "configs/quickstart.yaml", "--runs_dir", str(runs)]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
@pytest.mark.ranks
@pytest.mark.timeout(1500)
def test_the_main_job_beats_the_ridge_in_time(tmp_path: Path):
    done = start(tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result.keys() == {"run", "test_mse", "ridge_mse", "train_s", "total_s", "ranks"}
    assert result["test_mse"] <= result["ridge_mse"]
    # The target is 180 s on two quiet cores; here twice as long counts as a fault.
    assert result["train_s"] < 360
    whole = json.loads((tmp_path / "quickstart/result.json").read_text())
    assert whole["peak_rss_gib"] < 4
    assert whole["scores"]["Time-LLM"]["num_windows"] == 52608 * 2 // 10 - 48 + 1
    assert whole["val_mse"] <= whole["ridge_val_mse"]
    assert (tmp_path / "quickstart/forecast.png").stat().st_size > 10_000

    again = start(tmp_path)
    assert again.returncode == 0
    assert again.stdout.splitlines()[-1] == done.stdout.splitlines()[-1]
