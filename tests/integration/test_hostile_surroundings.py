"""A folder that cannot be written, a file that goes away, a clock that jumps."""

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from dist_train import bank_command, preflight
from dist_train.config import config_to_yaml
from dist_train.data import series
from dist_train.data.config import DataConfig, DataError
from dist_train.data.series import load_series
from dist_train.launcher import RANK_VARIABLES
from dist_train.loading import load_training_data
from memory_index.manifest import write_manifest
from memory_index.store import versions
from tests.helpers.runs import tiny_run
from tests.helpers.series import write_series
from tests.memory_index.banks import build, load, plan_of

ROOT = Path(__file__).parents[2]
TRAIN = (
    "import sys; from tests.helpers.permissions import obey_permissions; obey_permissions(); "
    "from dist_train.train import main; raise SystemExit(main(sys.argv[1:]))"
)


def train_without_roots_power(config_file: Path) -> "subprocess.CompletedProcess[str]":
    plain = {key: value for key, value in os.environ.items() if key not in RANK_VARIABLES}
    return subprocess.run(
        [sys.executable, "-c", TRAIN, "--config", str(config_file)],
        cwd=ROOT, env=plain | {"DS_ACCELERATOR": "cpu"}, text=True, capture_output=True,
        check=False, timeout=200,
    )  # fmt: skip


def test_a_run_where_nothing_can_be_written_says_so_in_one_line(tmp_path: Path):
    config = tiny_run(tmp_path)
    (tmp_path / "run.yaml").write_text(config_to_yaml(config))
    runs = Path(config.runs_dir)
    runs.mkdir()
    runs.chmod(0o555)
    try:
        ended = train_without_roots_power(tmp_path / "run.yaml")
    finally:
        runs.chmod(0o755)
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 1, ended.stderr
    assert ended.stderr.startswith("error: ")
    assert str(runs) in ended.stderr
    assert "Permission denied" in ended.stderr
    assert list(runs.iterdir()) == []


def test_a_data_file_that_may_not_be_read_says_so_in_one_line(tmp_path: Path):
    config = tiny_run(tmp_path)
    (tmp_path / "run.yaml").write_text(config_to_yaml(config))
    file = Path(str(config.data.path))
    file.chmod(0)
    script = TRAIN.replace("obey_permissions()", "obey_permissions(read_too=True)")
    ended = subprocess.run(
        [sys.executable, "-c", script, "--config", str(tmp_path / "run.yaml")],
        cwd=ROOT, text=True, capture_output=True, check=False, timeout=200,
    )  # fmt: skip
    assert ended.returncode == 2
    assert ended.stderr == (
        f"error: data.path={file} cannot be read (Permission denied): check the path.\n"
    )


def test_data_that_go_away_before_they_are_read_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = write_series(tmp_path / "own.csv")
    is_file = Path.is_file

    def then_gone(self: Path) -> bool:
        there = is_file(self)
        self.unlink(missing_ok=True)
        return there

    monkeypatch.setattr(Path, "is_file", then_gone)
    with pytest.raises(DataError, match=r"data.path=.*own.csv cannot be read \(No such file"):
        load_series(DataConfig(path=str(path)))


def test_data_that_go_away_while_they_are_read_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = write_series(tmp_path / "own.csv")
    read = series.read_table

    def read_then_gone(file: Path, label: str) -> object:
        found = read(file, label)
        file.unlink()
        return found

    monkeypatch.setattr(series, "read_table", read_then_gone)
    with pytest.raises(DataError, match=r"own.csv was taken away while it was read \(No such file"):
        load_series(DataConfig(path=str(path)))


def test_data_that_went_away_after_the_training_are_named(tmp_path: Path):
    config = tiny_run(tmp_path)
    checksum = preflight.check(config).data.series_set.checksum
    load_training_data(config, {"checksum": checksum})
    Path(str(config.data.path)).unlink()
    with pytest.raises(DataError, match=r"data.path=.*series.csv does not exist: check the path"):
        load_training_data(config, {"checksum": checksum})


def test_a_clock_that_jumps_changes_only_the_order_of_a_list_of_banks(tmp_path: Path):
    plans = [plan_of("flat"), plan_of("flat", fingerprint="another encoder")]
    folders = [build(tmp_path, plan) for plan in plans]
    future, past = time.time() + 10**9, 0
    for first, second in ((future, past), (past, future)):
        for folder, seconds in zip(folders, (first, second), strict=True):
            os.utime(folder.path / "manifest.json", (seconds, seconds))
        newest = folders[0] if first > second else folders[1]
        assert versions(tmp_path)[0] == newest.version
        assert set(versions(tmp_path)) == {folder.version for folder in folders}
        for folder, plan in zip(folders, plans, strict=True):
            load(folder, plan)  # found by what it is, not by when it was built


def test_a_bank_from_the_future_has_no_age_below_zero(tmp_path: Path):
    folder = build(tmp_path, plan_of("flat"))
    write_manifest(folder.path, replace(folder.open(), created="2199-01-01T00:00:00+00:00"))
    assert bank_command.info(folder.path, None, verify=True)["banks"][0]["age_hours"] == 0
