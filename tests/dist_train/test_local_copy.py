"""dist_train/local_copy.py: copies on the node's own disk, read instead of what they copy."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dist_train import local_copy


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the copies go."""
    monkeypatch.setenv(local_copy.VARIABLE, str(tmp_path / "node"))
    return tmp_path / "node"


def write(path: Path, text: str = "original") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_the_copy_is_read_where_there_is_one(tmp_path: Path, place: Path):
    file = write(tmp_path / "shared/series.csv")
    assert local_copy.find(file) == file
    copy = local_copy.make(file)
    assert copy.is_relative_to(place)
    assert (local_copy.find(file), copy.read_text()) == (copy, "original")


def test_nothing_is_copied_without_being_asked_for(
    tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch
):
    file = write(tmp_path / "series.csv")
    local_copy.make(file)
    monkeypatch.delenv(local_copy.VARIABLE)
    assert local_copy.find(file) == file


@pytest.mark.parametrize("same_size", [True, False])
def test_a_file_that_has_changed_is_read_itself(tmp_path: Path, place: Path, same_size: bool):
    file = write(tmp_path / "series.csv")
    local_copy.make(file)
    write(file, "modified" if same_size else "longer than before")
    os.utime(file, ns=(1, 1))
    assert local_copy.find(file) == file
    assert local_copy.make(file).read_text() == file.read_text()  # and is copied anew
    assert local_copy.find(file) != file


def test_files_of_one_name_are_kept_apart(tmp_path: Path, place: Path):
    files = [write(tmp_path / name / "series.csv", name) for name in "ab"]
    assert [local_copy.make(file).read_text() for file in files] == ["a", "b"]
    assert [local_copy.find(file).read_text() for file in files] == ["a", "b"]


def test_a_folder_without_what_is_being_built_in_it(tmp_path: Path, place: Path):
    write(tmp_path / "banks/v1/manifest.json")
    write(tmp_path / "banks/.v2.building/chunk")
    copy = local_copy.make(tmp_path / "banks")
    assert sorted(path.name for path in copy.rglob("*")) == ["manifest.json", "v1"]
    assert local_copy.find(tmp_path / "banks") == copy


def test_ranks_of_a_node_make_one_copy(tmp_path: Path, place: Path):
    file = write(tmp_path / "series.csv", "x" * 1_000_000)
    with ThreadPoolExecutor(8) as pool:
        copies = list(pool.map(local_copy.make, [file] * 8))
    assert len(set(copies)) == 1
    assert [path.name for path in place.rglob("*") if path.is_file()].count("series.csv") == 1


def test_a_copy_that_fails_leaves_nothing(
    tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch
):
    file = write(tmp_path / "series.csv")

    def full(source: Path, target: Path) -> None:
        target.write_text("half")
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr("shutil.copy2", full)
    with pytest.raises(OSError, match="No space"):
        local_copy.make(file)
    assert [path.name for path in place.rglob("*") if path.is_file()] == [".lock"]
    assert local_copy.find(file) == file
