"""launch/doctor/disk.py: a disk that is full, slow, or not to be written to."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from dist_train.config import RunConfig
from launch.doctor import disk
from launch.doctor.finding import Finding
from tests.helpers.doctors import report, visit
from tests.helpers.permissions import obey_permissions
from tests.helpers.ranks import run_ranks
from tests.helpers.small_disk import fill, small_disk


def look(runs_dir: Path, **options: Any) -> Finding:
    given = {"write_mib": 1.0, "free_gib": 0.001, **options}
    here = visit(RunConfig(runs_dir=str(runs_dir)), **given)
    (finding,) = disk.judge([report(**disk.examine(here))], here)
    return finding


def test_space_and_speed_are_told_and_nothing_is_left(tmp_path: Path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/mine").write_text("mine")
    finding = look(tmp_path / "runs")
    assert finding.status in ("ok", "warn")  # slow is a warning
    assert finding.found.startswith(f"{tmp_path / 'runs'}: ")
    assert finding.numbers["mib_per_s"] > 0
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["mine"]
    assert (tmp_path / "runs/mine").read_text() == "mine"


def test_a_folder_that_is_not_there_is_not_made(tmp_path: Path):
    assert str(tmp_path) in look(tmp_path / "a/b").found
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_found_and_stays_as_it_is(tmp_path: Path):
    with small_disk(tmp_path / "disk", 4096) as folder:
        assert look(folder, write_mib=0.5, free_gib=0).status in ("ok", "warn")
        fill(folder / "ballast")
        finding = look(folder)
        assert finding.status == "fail"
        assert f"{folder} is full: 0.0 MiB free" in finding.found
        assert "--runs_dir" in finding.remedy
        assert [path.name for path in folder.iterdir()] == ["ballast"]


def test_little_space_is_not_used_up(tmp_path: Path):
    with small_disk(tmp_path / "disk", 2048) as folder:
        here = visit(RunConfig(runs_dir=str(folder)), write_mib=8.0)
        assert not {"mib_per_s", "errno"} & disk.examine(here).keys(), "nothing was written"
        finding = look(folder, write_mib=8)
        assert finding.status == "fail"
        assert "has 2.0 MiB free, 0.0 GiB are needed" in finding.found


def test_a_disk_that_has_no_more_names_is_full_too(tmp_path: Path):
    with small_disk(tmp_path / "disk", 4096) as folder:
        subprocess.run(["mount", "-o", "remount,nr_inodes=2", str(folder)], check=True)
        (folder / "last").touch()
        finding = look(folder)
        assert finding.status == "fail"
        assert "no more files can be made" in finding.found


def write_where_it_is_forbidden(rank: int, world_size: int, folder: Path) -> None:
    obey_permissions()
    finding = look(folder)
    assert finding.status == "fail"
    assert "Permission denied" in finding.found


@pytest.mark.ranks
def test_a_folder_that_may_not_be_written_to_is_found(tmp_path: Path):
    folder = tmp_path / "run"
    folder.mkdir(mode=0o555)
    run_ranks(write_where_it_is_forbidden, 1, folder)


def test_a_quota_is_named_as_one():
    facts = {"folder": "/x", "free_gib": 99.0, "names_left": None, "errno": 122, "said": ""}
    (finding,) = disk.judge([report(**facts)], visit())
    assert finding.status == "fail"
    assert "Disk quota exceeded" in finding.found


def test_a_slow_disk_is_a_warning_and_the_sick_node_is_named():
    facts = {"folder": "/x", "free_gib": 99.0, "names_left": 5, "mib_per_s": 900.0}
    reports = [report(0, "a", **facts), report(1, "b", **facts | {"mib_per_s": 3.0})]
    (finding,) = disk.judge(reports, visit())
    assert (finding.status, finding.found) == (
        "warn", "/x on b: 99.0 GiB free, 3 MiB/s with fsync",
    )  # fmt: skip
    fast = report(2, "c", **facts | {"mib_per_s": 1200.0})
    (well,) = disk.judge([fast, reports[0]], visit())
    assert (well.status, well.found) == ("ok", "/x on a: 99.0 GiB free, 900 MiB/s with fsync")
