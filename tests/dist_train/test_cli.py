"""dist_train/cli.py: help is quick, and a mistake is one clear line."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from dist_train import cli
from dist_train.leak_alarm import LeakError
from memory_index.groups import OtherRankError
from memory_index.sharded_index import SearchError


def timellm(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dist_train.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_help_takes_under_a_second():
    times = []
    for _ in range(3):  # the best of three: the machine may be busy
        started = time.monotonic()
        done = timellm("--help")
        times.append(time.monotonic() - started)
        assert done.returncode == 0
    assert "train a run" in done.stdout
    assert min(times) < 1.0


def test_help_of_train_explains_every_key_without_torch():
    done = timellm("train", "--help")
    assert done.returncode == 0
    assert "--train.learning_rate" in done.stdout
    assert "Peak learning rate of AdamW" in " ".join(done.stdout.split())


def test_print_config_shows_the_resolved_configuration():
    done = timellm("train", "--train.seed", "7", "--print_config")
    assert done.returncode == 0
    assert "seed: 7" in done.stdout
    assert "zero_stage: 2" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "trian: unknown command, one of train, evaluate, predict, export, inspect"),
        (["train", "--config", "nowhere.yaml"], "nowhere.yaml: No such file"),
        (["evaluate"], "run"),
        (["evaluate", "--run", "nowhere"], "--run nowhere: no such folder"),
        (["evaluate", "--run", "nowhere", "--split", "tset"], "split"),
        (["evaluate", "--run", "nowhere", "--save_forecasts", "f.csv"], "--save_forecasts f.csv: "),
        (["predict", "--run", "nowhere", "--out", "x"], "--run nowhere: no such folder"),
        (["inspect", "--run", "nowhere"], "--run nowhere: no such folder"),
        (["inspect", "--run", "nowhere", "--window", "x"], "window"),
        (["bank"], "timellm bank nothing: say build or info"),
        (["doctor", "--timeout_s", "0"], "--timeout_s must be a positive number, got 0"),
        (["bank", "bild"], "timellm bank bild: say build or info; each explains its --help"),
        (["bank", "build", "--bank.index", "ivf"], "bank.index"),
        (["bank", "info", "--pth", "x"], "--pth"),
        (["data"], "timellm data nothing: say build or info"),
        (["data", "bild"], "timellm data bild: say build or info; each explains its --help"),
        (["data", "build"], "timellm data build: name the folder of the corpus with --out"),
        (["data", "build", "--data.sorces", "x"], "Unknown key data.sorces"),
        (["data", "info"], "folder"),
        (["data", "info", "x", "--vrify"], "--vrify"),
    ],
)
def test_a_mistake_is_refused(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
):
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert "error: " in error
    assert message in error


def test_data_explains_itself_without_torch():
    for action, option in (("build", "--out"), ("info", "--verify")):
        done = timellm("data", action, "--help")
        assert done.returncode == 0
        assert option in done.stdout
    assert "timellm data build --config FILE --out DIR" in timellm().stdout


def test_bank_explains_itself_without_torch():
    for action, option in (("build", "--bank.path"), ("info", "--verify")):
        done = timellm("bank", action, "--help")
        assert done.returncode == 0
        assert option in done.stdout
    assert "timellm bank build --config FILE --bank.path DIR" in timellm().stdout


def test_inspect_explains_itself_without_torch():
    done = timellm("inspect", "--help")
    assert done.returncode == 0
    for option in ("--run", "--split", "--window", "--words", "--out", "--per_head"):
        assert option in done.stdout
    assert "timellm inspect --run runs/quickstart" in timellm().stdout


@pytest.mark.parametrize("error", [OtherRankError("rank 1: x"), SearchError("y"), LeakError("z")])
def test_what_another_rank_met_is_one_line_too(
    error: RuntimeError, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def fail(argv: object) -> int:
        raise error

    monkeypatch.setitem(cli.COMMANDS, "evaluate", fail)
    assert cli.main(["evaluate"]) == 2
    assert capsys.readouterr().err == f"error: {error}\n"


def test_a_fault_of_torch_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch):
    def fail(argv: object) -> int:
        raise RuntimeError("connection closed by peer")

    monkeypatch.setitem(cli.COMMANDS, "evaluate", fail)
    with pytest.raises(RuntimeError, match="connection closed by peer"):
        cli.main(["evaluate"])


def test_predict_writes_a_forecast(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    arguments = ["predict", "--run", str(finished_run), "--out", str(tmp_path / "out")]
    assert cli.main(arguments) == 0
    assert str(tmp_path / "out/forecast.csv") in capsys.readouterr().out
    assert cli.main(arguments) == 2  # never overwritten
    assert "already exists" in capsys.readouterr().err
