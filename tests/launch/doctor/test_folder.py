"""launch/doctor/folder.py: a run's folder that not all nodes share."""

from pathlib import Path

import pytest

from dist_train.config import ConfigError, RunConfig
from launch.doctor import folder
from tests.helpers.doctors import report, visit


def test_rank_0_writes_a_file_that_the_end_of_the_doctor_deletes(tmp_path: Path):
    here = visit(RunConfig(runs_dir=str(tmp_path / "a/b")))
    assert folder.examine(here) == {"folder": str(tmp_path), "seen": True}
    assert [path.parent for path in here.leftovers] == [tmp_path]
    assert list(tmp_path.iterdir()) == here.leftovers
    assert here.leftovers[0].read_bytes() == b""


def test_where_nothing_can_be_written_rank_0_says_so(tmp_path: Path):
    (tmp_path / "runs").write_text("")
    here = visit(RunConfig(runs_dir=str(tmp_path / "runs")))
    with pytest.raises(ConfigError, match="is a file; name a folder"):
        folder.examine(here)


def test_a_rank_that_does_not_see_it_is_named():
    reports = [
        report(0, "a", folder="/x", seen=True),
        report(1, "b", folder="/x", seen=False),
        report(2, "c", folder="/x", seen=True),
    ]
    (finding,) = folder.judge(reports, visit())
    assert finding.status == "fail"
    assert "rank 1 (b) does not see in /x what rank 0 has written to /x" in finding.found
    (well,) = folder.judge(reports[:1], visit())
    assert (well.status, well.found) == ("ok", "all ranks share /x")
