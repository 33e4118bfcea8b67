"""dist_train/ablation/running.py: processes that end in every way, and signals on their way.

The processes here are small programs that leave behind what a training does; the trainings
themselves are run in test_command.py.
"""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from dist_train import run_folder
from dist_train.ablation import running
from dist_train.ablation.cells import Cell, Plan
from dist_train.ablation.results import is_finished
from dist_train.ablation.running import Limits, command_of, reason_of, run_cells
from dist_train.config import ConfigError, config_to_yaml
from dist_train.stop_signals import StopRequestedError
from tests.dist_train.ablation.ablations import base_run, plan_of

FINISHES = """
import json, os, pathlib, sys, time
folder, config = pathlib.Path(sys.argv[1]), sys.argv[2]
folder.mkdir(parents=True, exist_ok=True)
began = time.monotonic()
(folder / "config.yaml").write_text(config)
(folder / "span.json").write_text(json.dumps([began, time.monotonic()]))
(folder / "environment.json").write_text(json.dumps(dict(os.environ)))
(folder / "result.json").write_text("{}")
"""
MEETS = """
import os, pathlib, sys, time
folder, others, number = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), int(sys.argv[3])
folder.mkdir(parents=True)
(others / str(os.getpid())).touch()
deadline = time.monotonic() + 60
while len(list(others.iterdir())) < number:
    assert time.monotonic() < deadline, "alone"
    time.sleep(0.05)
(folder / "config.yaml").write_text(sys.argv[4])
(folder / "result.json").write_text("{}")
"""
FAILS = "import sys; print('error: out of memory: lower it', file=sys.stderr); sys.exit(71)"
KILLED = """
import os, pathlib, signal, sys, time
sys.path.insert(0, sys.argv[1])
from dist_train.run_folder import locked
with locked(pathlib.Path(sys.argv[2])):
    if os.fork() == 0:  # a worker that has not noticed yet
        time.sleep(20)
        os._exit(0)
    os.kill(os.getpid(), signal.SIGKILL)
"""
REFUSES = "import sys; print('error: another job runs there right now'); sys.exit(2)"
WAITS = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
print("waits", flush=True)
time.sleep(60)
"""

Program = Callable[[Cell], list[str]]


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return plan_of(base_run(tmp_path), seeds=2)


@pytest.fixture
def replace_program(monkeypatch: pytest.MonkeyPatch) -> Callable[[Program], None]:
    def replace(program: Program) -> None:
        def command(cell: Cell, config_file: str, ranks: int) -> list[str]:
            return [sys.executable, "-c", *program(cell)]

        monkeypatch.setattr(running, "command_of", command)

    return replace


def finishing(cell: Cell) -> list[str]:
    return [FINISHES, str(cell.folder), config_to_yaml(cell.config)]


def span(cell: Cell) -> tuple[float, float]:
    began, ended = json.loads((cell.folder / "span.json").read_text())
    return began, ended


def test_cells_run_one_after_the_other_and_never_twice(
    plan: Plan, replace_program: Callable[[Program], None]
):
    replace_program(finishing)
    said: list[str] = []
    run_cells(plan.trainings, "f", Limits(), said.append)
    assert all(is_finished(cell) for cell in plan.trainings)
    spans = [span(cell) for cell in plan.trainings]
    assert all(ended <= begun for (_, ended), (begun, _) in pairwise(spans))
    said.clear()
    run_cells(plan.trainings, "f", Limits(), said.append)
    assert said == ["4 of 4 runs have finished before"]


def test_a_cell_that_fails_says_why_and_the_others_go_on(
    plan: Plan, replace_program: Callable[[Program], None]
):
    broken = plan.trainings[1]
    replace_program(lambda cell: [FAILS] if cell is broken else finishing(cell))
    run_cells(plan.trainings, "f", Limits(), lambda line: None)
    assert [is_finished(cell) for cell in plan.trainings] == [True, False, True, True]
    assert json.loads(broken.failure.read_text()) == {
        "code": 71, "reason": "out of memory: lower it",
    }  # fmt: skip
    replace_program(finishing)  # tried again by the next call
    run_cells(plan.trainings, "f", Limits(), lambda line: None)
    assert is_finished(broken)
    assert not broken.failure.exists()


def test_several_run_at_once_only_where_asked(
    plan: Plan, replace_program: Callable[[Program], None], tmp_path: Path
):
    here = tmp_path / "here"
    here.mkdir()

    def meeting(cell: Cell) -> list[str]:
        return [MEETS, str(cell.folder), str(here), "4", config_to_yaml(cell.config)]

    replace_program(meeting)
    run_cells(plan.trainings, "f", Limits(jobs=4), lambda line: None)
    assert all(is_finished(cell) for cell in plan.trainings)


@pytest.mark.parametrize("finishes", [True, False])
@pytest.mark.parametrize("late", [True, False])
def test_what_another_process_runs_is_waited_for(
    plan: Plan,
    replace_program: Callable[[Program], None],
    monkeypatch: pytest.MonkeyPatch,
    finishes: bool,
    late: bool,
):
    monkeypatch.setattr(running, "_LOOK_ELSEWHERE_S", 0.1)
    theirs = plan.trainings[0]
    done, begun = threading.Event(), list[str]()

    def other() -> None:
        with run_folder.locked(theirs.folder):
            taken.set()
            done.wait(60)
            if finishes:
                (theirs.folder / "config.yaml").write_text(config_to_yaml(theirs.config))
                (theirs.folder / "result.json").write_text("{}")

    def program(cell: Cell) -> list[str]:
        begun.append(cell.label)
        if cell is theirs and late and len(begun) == 1:  # it was not there when this one looked
            thread.start()
            taken.wait(60)
            return [REFUSES]
        return finishing(cell)

    def say(line: str) -> None:
        said.append(line)
        if len([one for one in said if ": finished" in one]) == 3:
            done.set()  # all others have been run meanwhile

    said, taken, thread = list[str](), threading.Event(), threading.Thread(target=other)
    replace_program(program)
    if not late:
        thread.start()
        taken.wait(60)
    run_cells(plan.trainings, "f", Limits(), say)
    thread.join()
    assert all(is_finished(cell) for cell in plan.trainings)
    assert f"{theirs.label}: is run by another process, which is waited for" in said
    assert begun.count(theirs.label) == late + (not finishes)
    assert not theirs.failure.exists()


def test_a_cell_that_was_killed_has_failed_though_its_workers_still_hold_the_folder(
    plan: Plan, replace_program: Callable[[Program], None]
):
    first = plan.trainings[0]
    replace_program(lambda cell: [KILLED, str(Path(__file__).parents[3]), str(cell.folder)])
    run_cells([first], "f", Limits(), lambda line: None)
    assert run_folder.is_locked(first.folder)  # so it was not for want of a lock
    assert json.loads(first.failure.read_text())["code"] == -signal.SIGKILL


def test_a_run_refuses_a_folder_in_the_words_that_are_looked_for(tmp_path: Path):
    with (
        run_folder.locked(tmp_path),
        pytest.raises(ConfigError, match=running._RUNS_ALREADY),
        run_folder.locked(tmp_path),
    ):
        pass


def test_what_another_process_has_finished_meanwhile_is_not_begun(
    plan: Plan, replace_program: Callable[[Program], None]
):
    first, second, *_ = plan.trainings
    begun = []

    def program(cell: Cell) -> list[str]:
        begun.append(cell.label)
        if cell is first:
            second.folder.mkdir(parents=True)
            (second.folder / "config.yaml").write_text(config_to_yaml(second.config))
            (second.folder / "result.json").write_text("{}")
        return finishing(cell)

    replace_program(program)
    run_cells([first, second], "f", Limits(), lambda line: None)
    assert begun == [first.label]


def test_a_signal_ends_the_waiting_for_another_process(
    plan: Plan, replace_program: Callable[[Program], None]
):
    replace_program(finishing)
    first = plan.trainings[0]
    with run_folder.locked(first.folder):

        def say(line: str) -> None:
            if "another process" in line:
                os.kill(os.getpid(), signal.SIGTERM)

        with pytest.raises(StopRequestedError, match="SIGTERM"):
            run_cells([first], "f", Limits(), say)


def test_a_signal_is_passed_on_and_nothing_new_begins(
    plan: Plan, replace_program: Callable[[Program], None]
):
    replace_program(lambda cell: [WAITS])
    first = plan.trainings[0]

    def signal_once_it_waits() -> None:
        while not (first.log.exists() and "waits" in first.log.read_text()):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=signal_once_it_waits).start()
    said: list[str] = []
    with pytest.raises(StopRequestedError, match="SIGTERM"):
        run_cells(plan.trainings, "f", Limits(), said.append)
    assert [line.split(":")[0] for line in said] == [first.label] * 2
    assert said[1].endswith("stopped; the same command goes on with it")
    assert not first.failure.exists()
    assert not plan.trainings[1].log.exists()


def test_a_cell_knows_nothing_of_ranks_that_its_ablation_is_one_of(
    plan: Plan, replace_program: Callable[[Program], None], monkeypatch: pytest.MonkeyPatch
):
    for name in ("RANK", "WORLD_SIZE", "SLURM_STEP_ID", "TIMELLM_STARTED_AT"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,6,7")
    replace_program(finishing)
    cells = plan.trainings[:2]
    run_cells(cells, "f", Limits(ranks=2, jobs=2), lambda line: None)
    seen = [json.loads((cell.folder / "environment.json").read_text()) for cell in cells]
    assert not {"RANK", "WORLD_SIZE", "SLURM_STEP_ID", "TIMELLM_STARTED_AT"} & seen[0].keys()
    assert [one["CUDA_VISIBLE_DEVICES"] for one in seen] == ["3,5", "6,7"]


def test_more_cells_at_once_than_gpus_are_refused(plan: Plan, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    with pytest.raises(ConfigError, match="--jobs 2: needs 4 GPUs with --ranks 2, and there are 3"):
        run_cells(plan.trainings, "f", Limits(ranks=2, jobs=2), lambda line: None)


def test_each_kind_of_cell_has_its_command(tmp_path: Path):
    plan = plan_of(base_run(tmp_path), seeds=1, baselines=[("dlinear",)])
    training, beside = plan.trainings[0], plan.baselines[0].cells[0]
    one, two = command_of(training, "f.yaml", 1), command_of(training, "f.yaml", 2)
    assert one[1:] == [
        "-m", "dist_train.train", "--config", "f.yaml", *training.arguments, "--resume", "auto",
    ]  # fmt: skip
    assert two[1:4] == ["-m", "launch.local", "2"]
    assert two[4:] == one[3:]
    assert command_of(beside, "f.yaml", 2)[1:] == [
        "-m", "dist_train.baseline_run", "--baselines", "dlinear", "--config", "f.yaml",
        *beside.arguments,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        ("step 1\nerror: data.path: not there\nbye\n", "data.path: not there"),
        ("Traceback\n  File x\nRuntimeError: no\n", "RuntimeError: no"),
        ("step 1\nKilled\n\n", "Killed"),
        ("", "it said nothing"),
    ],
)
def test_the_reason_is_the_last_line_that_names_an_error(tmp_path: Path, log: str, reason: str):
    path = tmp_path / "x.log"
    path.write_text(log)
    assert reason_of(path) == reason


def test_the_reason_is_not_that_of_an_earlier_attempt(tmp_path: Path):
    path = tmp_path / "x.log"
    path.write_text("error: an old one\n")
    begin = path.stat().st_size
    assert reason_of(path, begin) == "it said nothing"
    with path.open("a") as log:
        log.write("Killed\n")
    assert reason_of(path, begin) == "Killed"
