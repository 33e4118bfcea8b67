"""dist_train/terminal.py: a bar on a terminal, plain lines elsewhere, nothing where it is quiet."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from dist_train import terminal
from dist_train.terminal import TrainingBar, say
from tests.helpers.terminals import ROOT, run_on_terminal

TRAIN = """
from dist_train.terminal import TrainingBar
bar = TrainingBar(4, 1, shown=True)
bar.show(best=0.75)
for step in (2, 3, 4):
    bar.update()
    bar.show(loss=0.125, windows_per_s=812.34)
bar.show(val_mse=0.5, best=0.5)
bar.close()
"""


def on_a_terminal(code: str, columns: int = 100, **environment: str) -> str:
    """What a program writes to a terminal."""
    env = os.environ | {"TERM": "xterm"} | environment
    done = run_on_terminal([sys.executable, "-c", code], env=env, columns=columns)
    assert done.returncode == 0, done.shown
    return done.shown


def test_a_terminal_gets_one_bar_that_says_all():
    written = on_a_terminal(TRAIN)
    assert written.count("\n") == 1  # of close()
    last = written.rstrip().rsplit("\r", 1)[-1]
    assert last.startswith("training 100%|")
    assert "4/4 steps [" in last
    assert "loss 0.1250, val mse 0.5000, best 0.5000, 812.3 windows/s]" in last


def test_the_bar_begins_where_a_run_goes_on():
    first = on_a_terminal(TRAIN).lstrip("\r").split("\r", 1)[0]
    assert first.startswith("training  25%|")
    assert "1/4 steps" in first


def test_nothing_is_coloured_with_or_without_no_color():
    for environment in ({}, {"NO_COLOR": "1"}):
        assert "\x1b[3" not in on_a_terminal(TRAIN, **environment)


def test_a_dumb_terminal_and_a_pipe_get_plain_lines():
    done = subprocess.run(
        [sys.executable, "-c", TRAIN], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for written in (done.stderr, on_a_terminal(TRAIN, TERM="dumb").replace("\r\n", "\n")):
        assert written == (
            "training: step 4/4, loss 0.1250, val mse 0.5000, best 0.5000, 812.3 windows/s "
            "[00:00]\n"
        )
    assert done.stdout == ""


def test_a_log_file_gets_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    now = 0.0
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now)
    bar = TrainingBar(100, 0, shown=True)
    for step in range(1, 51):
        now = 1.0 * step
        bar.update()
    bar.close()
    assert capsys.readouterr().err.splitlines() == [
        "training: step 20/100 [00:20, 01:20 left]",
        "training: step 40/100 [00:40, 01:00 left]",
        "training: step 50/100 [00:50]",
    ]


def test_what_is_not_finite_is_not_shown(capsys: pytest.CaptureFixture[str]):
    bar = TrainingBar(1, 0, shown=True)
    bar.show(best=float("inf"), loss=float("nan"))
    bar.close()
    assert capsys.readouterr().err == "training: step 0/1 [00:00]\n"


def test_nothing_is_printed_where_it_is_not_shown(capsys: pytest.CaptureFixture[str]):
    bar = TrainingBar(2, 0, shown=False)
    bar.update()
    bar.show(loss=1.0)
    bar.close()
    assert capsys.readouterr() == ("", "")


def test_quiet_keeps_warnings_on_stderr(capsys: pytest.CaptureFixture[str]):
    say("run a", "warning: disk", quiet=False)
    assert capsys.readouterr() == ("run a\nwarning: disk\n", "")
    say("run a", "warning: disk", "leak: rows", quiet=True)
    assert capsys.readouterr() == ("", "warning: disk\nleak: rows\n")


@pytest.mark.parametrize("quiet", [False, True])
def test_a_line_is_written_in_one_piece(quiet: bool, monkeypatch: pytest.MonkeyPatch):
    written: list[str] = []
    stream = SimpleNamespace(write=written.append, flush=lambda: None)
    monkeypatch.setattr(sys, "stderr" if quiet else "stdout", stream)
    say("warning: disk", "leak: rows", quiet=quiet)
    assert written == ["warning: disk\n", "leak: rows\n"]


def test_a_terminal_without_a_width_gets_plain_lines():
    written = on_a_terminal(TRAIN, columns=0).replace("\r\n", "\n")
    assert written.startswith("training: step 4/4, loss 0.1250, ")
    assert "\r" not in written
