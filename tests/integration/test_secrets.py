"""Tokens and passwords of the environment and of addresses stay out of all that a run leaves."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dist_train.config import RunConfig, config_to_yaml, fail, load_run_config
from dist_train.launcher import RANK_VARIABLES
from dist_train.tracking_config import TrackingConfig
from tests.helpers.runs import tiny_run

ROOT = Path(__file__).parents[2]
CANARY = "canary-7f3a91c2"
VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY")


def start(command: list[str], **changes: str) -> "subprocess.CompletedProcess[str]":
    plain = {key: value for key, value in os.environ.items() if key not in RANK_VARIABLES}
    return subprocess.run(
        [sys.executable, "-m", "dist_train.cli", *command],
        cwd=ROOT, env=plain | {"DS_ACCELERATOR": "cpu"} | changes, text=True,
        capture_output=True, check=False, timeout=240,
    )  # fmt: skip


def test_a_training_writes_and_prints_no_token(tmp_path: Path):
    config = tiny_run(tmp_path, tracking=TrackingConfig(wandb_mode="offline"))
    (tmp_path / "run.yaml").write_text(config_to_yaml(config))
    tokens = {name: f"{CANARY}-{name}" for name in VARIABLES}
    proxy = {"HTTPS_PROXY": f"http://user:{CANARY}@localhost:9"}
    ended = start(["train", "--config", str(tmp_path / "run.yaml")], **tokens, **proxy)
    assert ended.returncode == 0, ended.stderr
    assert CANARY not in ended.stdout + ended.stderr
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"result.json", "environment.json", "model.safetensors", "metrics.jsonl"} <= {
        path.name for path in written
    }
    assert any(path.suffix == ".wandb" for path in written)
    for path in written:
        assert CANARY.encode() not in path.read_bytes(), path


ADDRESS = f"https://user:{CANARY}@example.org/series.csv"
PLACES = ("--data.path", "--bank.path", "--runs_dir", "--backbone.name", "--train.patience",
          "--config", "--data.description", "--deepspeed.config_file")  # fmt: skip


@pytest.mark.parametrize("option", PLACES)
def test_a_password_in_an_address_is_refused_and_not_repeated(tmp_path: Path, option: str):
    # Data that are not there: even if it were taken, nothing would begin.
    (tmp_path / "run.yaml").write_text("data: {path: nowhere.csv}\n")
    ended = start(["train", "--config", str(tmp_path / "run.yaml"), option, ADDRESS])
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: ")
    assert option.removeprefix("--") in ended.stderr
    assert CANARY not in ended.stdout + ended.stderr


def test_an_address_without_a_password_is_an_ordinary_text(tmp_path: Path):
    (tmp_path / "run.yaml").write_text("data: {description: 'see https://example.org/a@b'}\n")
    config = load_run_config(tmp_path / "run.yaml")
    assert isinstance(config, RunConfig)
    assert config.data.description == "see https://example.org/a@b"


def test_a_message_of_a_library_loses_the_password(capsys: pytest.CaptureFixture[str]):
    assert fail(ValueError(f"cannot reach https://user:{CANARY}@host/x and ftp://{CANARY}@y")) == 2
    error = capsys.readouterr().err
    assert error == "error: cannot reach https://***@host/x and ftp://***@y\n"
