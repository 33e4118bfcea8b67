"""memory_index/atomic_file.py: a reader finds the old file or the new one, never a part."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memory_index.atomic_file import replacing, sweep, write_text

ROOT = Path(__file__).parents[2]

KILLED_BEFORE_THE_FILE_IS_SAFE = """
import os, signal, sys
from pathlib import Path
from memory_index.atomic_file import write_text
os.fsync = lambda number: os.kill(os.getpid(), signal.SIGKILL)
write_text(Path(sys.argv[1]), "new" * 1000)
"""


def test_a_file_is_replaced_whole(tmp_path: Path):
    path = tmp_path / "x.json"
    write_text(path, "one, and longer than what comes after")
    write_text(path, "two")
    assert path.read_text() == "two"
    assert [one.name for one in tmp_path.iterdir()] == ["x.json"]


@settings(deadline=None)
@given(text=st.text())
def test_any_text_comes_back(tmp_path_factory: pytest.TempPathFactory, text: str):
    path = tmp_path_factory.getbasetemp() / "any.txt"
    write_text(path, text)
    assert path.read_bytes() == text.encode()


def test_a_killed_writer_leaves_the_old_file(tmp_path: Path):
    path = tmp_path / "x.json"
    write_text(path, "old")
    command = [sys.executable, "-c", KILLED_BEFORE_THE_FILE_IS_SAFE, str(path)]
    done = subprocess.run(command, cwd=ROOT, check=False, timeout=60)
    assert done.returncode == -9
    assert path.read_text() == "old"


def write_half(path: Path) -> None:
    with replacing(path) as beside:
        beside.write_text("half")
        raise RuntimeError("full")


def test_a_writer_that_raises_leaves_the_old_file_alone(tmp_path: Path):
    path = tmp_path / "x.json"
    write_text(path, "old")
    with pytest.raises(RuntimeError, match="full"):
        write_half(path)
    assert path.read_text() == "old"
    assert [one.name for one in tmp_path.iterdir()] == ["x.json"]


def test_the_file_is_on_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path, seen = tmp_path / "x.json", []
    monkeypatch.setattr(os, "fsync", lambda number: seen.append((path.exists(), number)))
    write_text(path, "new")
    assert [exists for exists, _ in seen] == [False]


def test_what_a_killed_writer_left_is_swept_and_nothing_else(tmp_path: Path):
    others = {
        "a.json", ".a.json", ".a.json.new", ".a.json.1.2", ".aXjson.3", "a.json.12", ".lock",
        ".notes.2024", ".2024.12",
    }  # fmt: skip
    for name in (".a.json.123", ".b.safetensors.7", *others):
        (tmp_path / name).touch()
    (tmp_path / ".a.json.5").mkdir()
    sweep(tmp_path, ["a.json", "b.safetensors"])
    assert {path.name for path in tmp_path.iterdir()} == {*others, ".a.json.5"}
