"""memory_index/shared_disk.py: what network file systems do otherwise than a local disk."""

import errno
import fcntl
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from memory_index import shared_disk
from memory_index.shared_disk import appears, free_name, is_kept_open, make_folder, try_lock
from tests.helpers.nfs import keep_open_files, remember_what_is_not_there


@pytest.fixture
def handles(tmp_path: Path) -> Iterator[list[int]]:
    file = tmp_path / ".lock"
    opened = [os.open(file, os.O_CREAT | os.O_RDWR) for _ in range(3)]
    yield opened
    for handle in opened:
        os.close(handle)


def test_a_lock_is_held_by_one_or_shared_by_many(tmp_path: Path, handles: list[int]):
    file = tmp_path / ".lock"
    one, two, three = handles
    assert try_lock(one, file)
    assert not try_lock(two, file)
    assert not try_lock(two, file, shared=True)
    fcntl.flock(one, fcntl.LOCK_UN)
    assert try_lock(two, file, shared=True)
    assert try_lock(three, file, shared=True)
    assert not try_lock(one, file)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_without_locks_the_work_goes_on_and_it_is_said_once(
    number: int, tmp_path: Path, handles: list[int], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    def refuse(handle: int, kind: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert try_lock(handles[0], tmp_path / ".lock")
    assert try_lock(handles[1], tmp_path / ".lock")
    said = capsys.readouterr().err
    assert said.startswith(f"warning: {tmp_path}: this file system has no locks (")
    assert said.count("warning") == 1


def test_another_error_of_a_lock_is_raised(
    tmp_path: Path, handles: list[int], monkeypatch: pytest.MonkeyPatch
):
    def fail(handle: int, kind: int) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(OSError, match="broken"):
        try_lock(handles[0], tmp_path / ".lock")


def test_a_folder_that_another_node_has_made_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        remember_what_is_not_there(patch, tmp_path, 60)
        assert not run.exists()
        subprocess.run(["mkdir", str(run)], check=True)  # another process: it is not seen here
        assert not run.exists()
        make_folder(run / "bank")
        assert (run / "bank").is_dir()
    (tmp_path / "file").touch()
    monkeypatch.setattr(shared_disk, "PATIENCE_S", 60)
    began = time.monotonic()
    with pytest.raises(FileExistsError):
        make_folder(tmp_path / "file")
    assert time.monotonic() - began < 30


def test_a_name_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    late = threading.Timer(0.3, (tmp_path / "late").touch)
    late.start()
    assert appears(tmp_path / "late")
    late.join()
    monkeypatch.setattr(shared_disk, "PATIENCE_S", 0.1)
    assert not appears(tmp_path / "never")


def test_what_is_kept_open_does_not_keep_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    old = tmp_path / ".best.old"
    for _ in range(2):
        old.mkdir()
        (old / "model").write_text("weights")
        assert free_name(old) == old
        assert not old.exists()
    keep_open_files(monkeypatch)
    old.mkdir()
    (old / "model").write_text("weights")
    with (old / "model").open():
        other = free_name(old)
        assert other == tmp_path / ".best.old.1"
        assert [is_kept_open(path) for path in old.iterdir()] == [True]
        other.mkdir()
        assert free_name(old) == other
    assert free_name(old) == old
