"""launch/doctor/command.py: real ranks, well and ill, and what they say."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from dist_train.config import config_to_yaml
from launch.doctor import command
from launch.doctor.options import CHECKS
from tests.helpers.doctors import Patient, Ward, examine, node, only, rows
from tests.helpers.jobs import ROOT, Ended
from tests.helpers.runs import tiny_run
from tests.helpers.small_disk import fill, small_disk
from tests.helpers.waiting import wait_until
from tests.launch.doctor.test_packages import install

QUICK = ["--size_mib", "0.5", "--write_mib", "1", "--free_gib", "0"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a run's configuration is, and its runs will be."""
    folder = tmp_path_factory.mktemp("doctor")
    (folder / "run.yaml").write_text(config_to_yaml(tiny_run(folder)))
    (folder / "runs/run").mkdir(parents=True)
    (folder / "runs/run/mine").write_text("mine")
    return folder


@pytest.fixture(scope="module")
def well(folder: Path) -> list[Ended]:
    """Two ranks on two nodes, all checks but the loading of libraries."""
    given = ["--config", str(folder / "run.yaml"), *QUICK, "--skip", "libraries", "--json"]
    return examine(*given, ranks=[node(0), node(1)])


@pytest.mark.ranks
def test_ranks_that_are_well_end_with_0_and_rank_0_alone_prints(well: list[Ended]):
    assert [ended.code for ended in well] == [0, 0], well
    assert (well[1].out, well[1].error, well[0].error) == ("", "", "")
    assert "all-reduce, all ranks" in well[0].out


@pytest.mark.ranks
def test_the_last_line_is_json_of_the_documented_form(well: list[Ended]):
    content = json.loads(well[0].out.splitlines()[-1])
    documented = set(re.findall(r'^ +[{\[]?"(\w+)":', command.__doc__ or "", re.M)) | {"status"}
    checks = content.pop("checks")
    assert {*content, "checks", "found", "numbers"} == documented
    assert all(set(row) == {"check", "status", "found", "remedy", "numbers"} for row in checks)
    assert content["status"] in ("ok", "warn")  # a busy machine may be slow
    assert (content["code"], content["world_size"]) == (0, 2)
    assert [(one["rank"], one["local_rank"]) for one in content["arrived"]] == [(0, 0), (1, 0)]
    assert len({one["node"] for one in content["arrived"]}) == 2
    assert 0 < content["seconds"] < 120


@pytest.mark.ranks
def test_everything_is_looked_at(well: list[Ended]):
    found = rows(well[0])
    assert "fail" not in {row["status"] for row in found.values()}
    assert list(found) == [
        "ranks", "configuration", "data", "backbone", "packages", "same packages", "libraries",
        "devices", "host", "disk", "wandb", "clocks", "folder", "speed",
        "all-reduce, all ranks", "all-gather, all ranks",
    ]  # fmt: skip
    assert found["libraries"]["status"] == "skip"
    assert set(found["speed"]["numbers"]) == {"rank_0_ms", "rank_1_ms"}
    assert found["all-gather, all ranks"]["numbers"]["0.5_mib_bus_gb_per_s"] > 0
    assert abs(found["clocks"]["numbers"]["largest_skew_s"]) < 0.5


@pytest.mark.ranks
def test_nothing_is_left_in_the_run_s_folder(well: list[Ended], folder: Path):
    paths = [path.relative_to(folder / "runs").as_posix() for path in folder.rglob("runs/**/*")]
    assert sorted(paths) == ["run", "run/mine"]


@pytest.fixture(scope="module")
def ill(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Ended]:
    """Rank 1 has another package, no data, a clock that is fast, and a folder of its own."""
    own = tmp_path_factory.mktemp("ill")
    install(own, "peft", "99.0")
    (own / "sitecustomize.py").write_text(
        "import time\nright = time.time\ntime.time = lambda: right() + 60\n"
    )
    (own / "runs").mkdir()
    sick = node(1, PYTHONPATH=f"{own}{os.pathsep}{ROOT}", TIMELLM_DATA_ROOT="")
    sick = replace(sick, arguments=["--runs_dir", str(own / "runs"), "--data.path", str(own / "x")])
    given = ["--config", str(folder / "run.yaml"), "--json"]
    given += only("inputs", "packages", "clocks", "folder")
    ended = examine(*given, ranks=[node(0), sick])
    assert not list((own / "runs").iterdir())
    return ended


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("check", "status", "said"),
    [
        ("same packages", "fail", r"peft is 0\.\S+ on rank 0 \(\S+/0\), 99\.0 on rank 1 \(\S+/1\)"),
        ("data", "fail", r"rank 1 \(\S+/1\): data\.path=\S+/x does not exist"),
        ("configuration", "fail", r"it differs: \w{8} on rank 0 \(\S+\); \w{8} on rank 1"),
        ("clocks", "warn", r"the clock of rank 1 \(\S+\) is 60\.0 s ahead of rank 0's"),
        ("folder", "fail", r"rank 1 \(\S+\) does not see in \S+/runs what rank 0 has written"),
    ],
)
def test_an_ill_rank_is_named(check: str, status: str, said: str, ill: list[Ended]):
    row = rows(ill[0])[check]
    assert row["status"] == status
    assert re.match(said, row["found"])
    assert row["remedy"]


@pytest.mark.ranks
def test_a_failure_is_exit_code_1_on_all_ranks(ill: list[Ended]):
    assert [ended.code for ended in ill] == [1, 1]


@pytest.mark.ranks
def test_a_rank_that_cannot_connect_says_where_and_rank_0_says_who():
    lost = Patient(environment={"MASTER_PORT": "9", "MASTER_ADDR": "localhost"})
    first, second = examine("--timeout_s", "3", *only(), "--json", ranks=[Patient(), lost])
    assert (first.code, second.code) == (1, 1)
    row = rows(first)["ranks"]
    assert row["status"] == "fail"
    assert row["found"].startswith("rank 1 of 2 never arrived; those that did: rank 0")
    assert rows(first)["links"]["status"] == "skip"
    assert second.out == ""
    (line,) = second.error.splitlines()
    said = (
        r"doctor: rank 1 \(.*\): cannot reach MASTER_ADDR=localhost MASTER_PORT=9 within 3 s: con"
    )
    assert re.match(said, line)


@pytest.mark.ranks
def test_ranks_that_disagree_on_their_number_and_one_that_never_came():
    other = Patient(environment={"WORLD_SIZE": "3"})
    ended = examine("--timeout_s", "10", *only(), ranks=[Patient(), other], fresh=False)
    assert [one.code for one in ended] == [1, 1]
    text = " ".join(ended[0].out.split())
    assert re.search(r"the ranks disagree on WORLD_SIZE: 2 on rank 0 \(.*\); 3 on rank 1", text)
    assert "rank 2 of 3 never arrived" in text
    assert ended[1].out == ""


@pytest.mark.slow
@pytest.mark.ranks
def test_numbers_given_twice_are_named_with_their_processes():
    ranks = [Patient(environment={"RANK": number, "WORLD_SIZE": "5"}) for number in "0101"]
    ended = examine("--timeout_s", "10", *only(), ranks=ranks, fresh=False)
    assert [one.code for one in ended] == [1, 1, 1, 1]
    (told,) = [one.out for one in ended if one.out]  # of two ranks 0 the first leads
    text = " ".join(told.split())
    for number in "01":
        assert re.search(rf"RANK={number} came 2 times: process \d+ on \S+, process \d+ on", text)
    assert "ranks 2, 3, 4 of 5 never arrived" in text


@pytest.mark.ranks
def test_a_full_disk_and_another_number_of_ranks(tmp_path: Path):
    with small_disk(tmp_path / "disk", 2048) as disk:
        fill(disk / "ballast")
        given = ["--runs_dir", str(disk), "--world_size", "3", "--train.batch_size", "4"]
        environment = {key: text for key, text in os.environ.items() if key != "RANK"}
        done = subprocess.run(
            [sys.executable, "-m", "dist_train.cli", "doctor", *given, "--json",
             *only("inputs", "disk", "folder")],
            cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        assert [path.name for path in disk.iterdir()] == ["ballast"]
    assert (done.returncode, done.stderr) == (1, "")
    found = rows(Ended(code=1, out=done.stdout, error=""))
    assert f"{disk} is full" in found["disk"]["found"]
    assert found["ranks"]["found"] == "--world_size 3, but 1 ranks are announced (WORLD_SIZE)"
    assert "train.batch_size=4 does not divide over 3 ranks" in found["configuration"]["found"]


def is_read(fifo: Path) -> bool:
    """Whether somebody waits for what is written there."""
    try:
        os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
    except OSError:
        return False
    return True


def hangs(fifo: Path) -> Patient:
    """A rank that waits for a file for ever, as on a network disk that is gone."""
    os.mkfifo(fifo)
    return Patient(arguments=["--deepspeed.config_file", str(fifo)])


@pytest.mark.slow
@pytest.mark.ranks
def test_a_check_that_never_ends_is_a_row_and_the_others_are_made(folder: Path, tmp_path: Path):
    given = ["--config", str(folder / "run.yaml"), "--json", *only("inputs", "packages")]
    given += ["--timeout_s", "10"]
    first, second = examine(*given, ranks=[Patient(), hangs(tmp_path / "fifo")], fresh=False)
    assert (first.code, second.code, second.error) == (1, 1, "")
    row = rows(first)["inputs"]
    assert row["status"] == "fail"
    assert re.fullmatch(r"rank 1 \(.*\) did not end within 10 s", row["found"])
    assert rows(first)["packages"]["status"] == "ok"


@pytest.mark.slow
@pytest.mark.ranks
def test_a_rank_that_is_killed_is_named(folder: Path, tmp_path: Path):
    given = ["--config", str(folder / "run.yaml"), "--json", *only("inputs"), "--timeout_s", "10"]
    with Ward(*given, ranks=[Patient(), hangs(tmp_path / "fifo")], fresh=False) as ward:
        wait_until(lambda: is_read(tmp_path / "fifo"))
        ward.processes[1].send(signal.SIGKILL)
        first = ward.wait(0)
    assert first.code == 1
    row = rows(first)["ranks"]
    assert row["status"] == "fail"
    said = r"rank 1 \(.*\) is gone, or hangs: its last sign of life was from inputs"
    assert re.fullmatch(said, row["found"])
    assert rows(first)["links"]["found"] == "needs all ranks, and one is gone: see ranks"


@pytest.mark.slow
@pytest.mark.ranks
def test_without_rank_0_a_rank_says_so_and_ends(folder: Path, tmp_path: Path):
    given = ["--config", str(folder / "run.yaml"), *only("inputs"), "--timeout_s", "30"]
    with Ward(*given, ranks=[hangs(tmp_path / "fifo"), Patient()]) as ward:
        wait_until(lambda: is_read(tmp_path / "fifo"))
        ward.processes[0].send(signal.SIGKILL)
        second = ward.wait(1)
    assert (second.code, second.out) == (1, "")
    said = r"doctor: rank 1 \(.*\): the connection broke: .*; see the output of rank 0.\n"
    assert re.fullmatch(said, second.error)


@pytest.mark.slow
@pytest.mark.ranks
def test_a_rank_0_that_is_stopped_does_not_keep_the_others(folder: Path, tmp_path: Path):
    given = ["--config", str(folder / "run.yaml"), *only("inputs"), "--timeout_s", "3"]
    with Ward(*given, ranks=[hangs(tmp_path / "fifo"), Patient()], fresh=False) as ward:
        wait_until(lambda: is_read(tmp_path / "fifo"))
        ward.processes[0].send(signal.SIGSTOP)  # its store answers no more
        second = ward.wait(1)
    assert (second.code, second.out) == (1, "")
    said = r"doctor: rank 1 \(.*\): hangs in .*, and ends itself; if rank 0 has stopped"
    assert re.match(said, second.error.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.ranks
def test_a_doctor_that_is_told_to_stop_deletes_its_file(tmp_path: Path):
    (tmp_path / "runs").mkdir()
    # Rank 1 waits for a file that never comes, so that rank 0 waits for it.
    (tmp_path / "other").mkdir()
    away = Patient(arguments=["--runs_dir", str(tmp_path / "other")])
    given = ["--runs_dir", str(tmp_path / "runs"), *only("folder")]
    with Ward(*given, ranks=[Patient(), away], fresh=False) as ward:
        wait_until(lambda: any((tmp_path / "runs").iterdir()))
        ward.processes[0].send(signal.SIGTERM)
        assert ward.wait(0).code == 128 + signal.SIGTERM
    assert not any((tmp_path / "runs").iterdir())


def test_help_is_quick_and_explains_every_check():
    began = time.monotonic()
    code = "from dist_train.cli import main; import sys; code = main(['doctor', '--help'])"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert time.monotonic() - began < 60  # without torch; 1 s where nothing else runs
    for option in ("--world_size", "--timeout_s", "--size_mib", "--write_mib", "--skip", "--json"):
        assert option in done.stdout
    assert all(name in done.stdout for name in CHECKS)


@pytest.mark.parametrize(
    ("given", "environment", "said"),
    [
        (["--timeout_s", "0"], {}, "--timeout_s must be a positive number"),
        (["--train.batch_sise", "3"], {}, "did you mean train.batch_size"),
        ([], {"RANK": "x"}, "RANK=x: must be a whole number"),
        ([], {"RANK": "1", "WORLD_SIZE": ""}, "WORLD_SIZE is not set, and RANK is"),
    ],
)
def test_wrong_arguments_are_one_line_and_exit_code_2(
    given: list[str], environment: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    monkeypatch.setenv("TORCH_CPP_LOG_LEVEL", "ERROR")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for key, text in environment.items():
        monkeypatch.setenv(key, text)
    assert command.main(given) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("error: ")
    assert said in told.err


def test_a_configuration_on_a_disk_that_is_gone_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("TORCH_CPP_LOG_LEVEL", "ERROR")
    monkeypatch.setattr(command, "_PARSING_S", 0.5)
    os.mkfifo(tmp_path / "run.yaml")
    assert command.main(["--config", str(tmp_path / "run.yaml")]) == 2
    assert "--config: reading it did not end within 0.5 s" in capsys.readouterr().err
    (tmp_path / "run.yaml").open("w").close()  # lets the thread end
