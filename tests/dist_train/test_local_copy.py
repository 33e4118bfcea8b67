"""dist_train/local_copy.py: copies on the node's own disk, read instead of what they copy."""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dist_train import local_copy
from dist_train.data.arrow_series import FACTS_FILE, SERIES_FILE, verify
from dist_train.data.config import SourceConfig
from tests.helpers.corpora import build_one, write_wide


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


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A built source."""
    return build_at(tmp_path / "corpus/own", seed=0)


def build_at(folder: Path, seed: int) -> Path:
    """Build a source of values that the seed draws; their files have the same sizes."""
    table = write_wide(folder.parent.parent / "own.csv", rows=40, seed=seed)
    build_one(SourceConfig(path=str(table)), folder)
    return folder


def test_a_source_that_was_built_anew_is_read_itself_and_copied_anew(
    tmp_path: Path, place: Path, source: Path
):
    copy, other = local_copy.make(source), local_copy.make(build_at(tmp_path / "corpus/b", seed=2))
    write(copy.parent / "notes.txt", "mine")
    times = {path.name: path.stat().st_mtime_ns for path in source.iterdir()}
    shutil.rmtree(source)
    build_at(source, seed=1)
    for name, time_ns in times.items():
        os.utime(source / name, ns=(time_ns, time_ns))
    assert local_copy.find(source) == source
    assert local_copy.make(source) == local_copy.find(source) == copy
    assert verify(copy) == verify(source)
    assert verify(other) == verify(tmp_path / "corpus/b")
    assert (copy.parent / "notes.txt").read_text() == "mine"


def test_the_copy_of_a_source_is_known_by_the_checksum_in_it_not_by_times(
    place: Path, source: Path
):
    copy = local_copy.make(source)
    for path in source.iterdir():
        os.utime(path, ns=(1, 1))
    assert local_copy.find(source) == copy
    (source / FACTS_FILE).unlink()  # a build that goes on
    assert local_copy.find(source) == source
    assert (copy / SERIES_FILE).exists()


def test_a_link_in_the_place_of_a_copy_goes_and_what_it_leads_to_stays(
    tmp_path: Path, place: Path, source: Path
):
    copy, mine = local_copy.make(source), tmp_path / "mine"
    copy.rename(mine)
    write(mine / FACTS_FILE, "{}")
    copy.symlink_to(mine)
    assert local_copy.find(source) == source
    assert verify(local_copy.make(source)) == verify(source)
    assert (mine / FACTS_FILE).read_text() == "{}"


@pytest.mark.parametrize("change", ["content", "time", "more", "file for a folder"])
def test_a_folder_that_has_changed_is_read_itself(tmp_path: Path, place: Path, change: str):
    folder = tmp_path / "banks"
    file = write(folder / "v1/manifest.json")
    write(folder / "v2/manifest.json")
    copy = local_copy.make(folder)
    write(copy / "v1/recall.json", "measured on this node")
    assert local_copy.find(folder) == copy
    if change == "content":
        write(file, "longer than before")
    elif change == "time":
        os.utime(file, ns=(1, 1))
    elif change == "more":
        write(folder / "v1/chunk")
    else:
        file.unlink()
        write(file / "chunk")
    assert local_copy.find(folder) == local_copy.find(folder, "v1") == folder
    assert local_copy.find(folder, "v2") == copy  # which is all that is read of it
    assert local_copy.find(local_copy.make(folder)) == local_copy.find(folder) == copy


def test_what_cannot_be_compared_is_read_itself(
    tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch
):
    file = write(tmp_path / "banks/v1/manifest.json")
    copy = local_copy.make(file.parent)
    stat = Path.stat

    def failing(path: Path, **options: bool) -> os.stat_result:
        if path == copy / file.name:
            raise OSError(5, "Input/output error", str(path))
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", failing)
    assert local_copy.find(file.parent) == file.parent


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
