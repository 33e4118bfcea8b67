"""dist_train/processes.py: which process still runs, and which launcher is above this one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dist_train import processes
from dist_train.processes import Process

ROOT = Path(__file__).parents[2]
TELL = "from dist_train import processes; print(*[p.name for p in processes.launchers()])"


def process(pid: int) -> Process:
    return Process(pid=pid, started=processes._start_of(pid) or 0)


def test_a_process_runs_until_it_has_ended_reaped_or_not():
    child = subprocess.Popen(["sleep", "60"])
    known = process(child.pid)
    try:
        assert known.is_running()
    finally:
        child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # a zombie now
    assert not known.is_running()
    child.wait()
    assert not known.is_running()


def test_a_later_process_of_the_same_number_is_another():
    own = processes.this_process()
    assert own.is_running()
    assert not Process(pid=own.pid, started=own.started - 1).is_running()


def launched(command: list[str]) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.strip()


def test_without_a_launcher_there_is_none(tmp_path: Path):
    script = tmp_path / "deepspeed-not.sh"
    script.write_text('"$1" -c "$2"; true\n')
    assert launched(["bash", str(script), sys.executable, TELL, "deepspeed", "torchrun"]) == ""


@pytest.mark.parametrize("name", ["deepspeed", "torchrun"])
def test_a_launcher_is_known_by_the_script_that_it_runs(tmp_path: Path, name: str):
    script = tmp_path / name
    script.write_text("import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])")
    assert launched([sys.executable, "-u", str(script), TELL]) == name


def test_a_launcher_is_known_by_the_module_that_it_runs(tmp_path: Path):
    folder = tmp_path / "deepspeed" / "launcher"
    folder.mkdir(parents=True)
    for package in (folder, folder.parent):
        (package / "__init__.py").touch()
    text = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
    (folder / "launch.py").write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "deepspeed.launcher.launch", TELL],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert done.stdout.strip() == "deepspeed.launcher.launch"


def test_begin_silences_torch_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TORCH_CPP_LOG_LEVEL", "INFO")
    processes.begin()
    assert os.environ["TORCH_CPP_LOG_LEVEL"] == "INFO"
    monkeypatch.delenv("TORCH_CPP_LOG_LEVEL")
    processes.begin()
    assert os.environ["TORCH_CPP_LOG_LEVEL"] == "ERROR"


def test_an_ablation_is_the_launcher_of_its_runs_and_no_other_command_is(tmp_path: Path):
    script = tmp_path / "timellm"
    script.write_text("import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[2]])")
    assert launched([sys.executable, str(script), "ablate", TELL]) == "timellm ablate"
    assert launched([sys.executable, str(script), "train", TELL]) == ""
