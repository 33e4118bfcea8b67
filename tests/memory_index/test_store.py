"""memory_index/store.py: files that are whole or refused, whatever lies in the folder."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from memory_index.manifest import ManifestError
from memory_index.store import BankFolder, chunk_name, sha256_of, versions
from tests.memory_index.banks import Source

SHARED_FOLDER = [HealthCheck.function_scoped_fixture]


def test_a_part_comes_back_as_it_was_written(tmp_path: Path):
    folder = BankFolder(tmp_path, "abc")
    tensors = {"codes": torch.arange(12, dtype=torch.uint8).view(3, 4), "ids": torch.arange(3)}
    with folder.locked_for_building():
        checksum = folder.write_part("chunk_00000.safetensors", tensors)
    assert checksum == sha256_of(folder.building / "chunk_00000.safetensors")
    found = folder.read_part("chunk_00000.safetensors")
    assert found is not None
    for name, values in tensors.items():
        assert torch.equal(found[name], values)
    assert folder.read_part("chunk_00001.safetensors") is None


def test_a_torn_part_or_one_of_something_else_is_thrown_away(tmp_path: Path):
    folder, other = BankFolder(tmp_path, "abc"), BankFolder(tmp_path, "def")
    for one in (folder, other):
        with one.locked_for_building():
            one.write_part("a.safetensors", {"x": torch.ones(3)})
    torn = folder.building / "a.safetensors"
    torn.write_bytes(torn.read_bytes()[:-3])
    assert folder.read_part("a.safetensors") is None
    assert not torn.exists()
    (other.building / "a.safetensors").replace(torn)
    assert folder.read_part("a.safetensors") is None


def test_a_failed_write_leaves_nothing_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("memory_index.store.save_file", full)
    folder = BankFolder(tmp_path, "abc")
    with folder.locked_for_building(), pytest.raises(OSError, match="No space left"):
        folder.write_part("a.safetensors", {"x": torch.ones(3)})
    assert [path.name for path in folder.building.iterdir()] == [".lock"]


def test_publishing_replaces_a_damaged_bank_and_leaves_nothing_else(tmp_path: Path):
    source = Source()
    folder = source.build(tmp_path, "flat")
    (folder.path / chunk_name(0)).write_bytes(b"damaged")
    stray = folder.building
    stray.mkdir()
    (stray / "leftover.safetensors").write_bytes(b"")
    source.build(tmp_path, "flat")
    source.load(tmp_path, "flat")
    assert sorted(path.name for path in tmp_path.iterdir()) == [folder.version]
    assert not (folder.path / "leftover.safetensors").exists()
    folder.delete()
    assert not list(tmp_path.iterdir())


def test_versions_are_listed_newest_first_and_unfinished_ones_are_not(tmp_path: Path):
    assert versions(tmp_path / "nowhere") == []
    made = [Source(seed=seed).build(tmp_path, "flat") for seed in range(3)]
    for age, folder in enumerate(made):
        os.utime(folder.path / "manifest.json", (1000 - age, 1000 - age))
    with Source(seed=9).folder(tmp_path, "flat").locked_for_building():
        assert versions(tmp_path) == [folder.version for folder in made]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> BankFolder:
    return Source().build(tmp_path_factory.mktemp("store"), "ivf_sq8")


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(name=st.sampled_from(["chunk_00001.safetensors", "trained.safetensors"]), data=st.data())
def test_any_flipped_byte_is_detected(whole: BankFolder, name: str, data: st.DataObject):
    path, manifest = whole.path / name, whole.open()
    content = path.read_bytes()
    place = data.draw(st.integers(0, len(content) - 1))
    flipped = bytearray(content)
    flipped[place] ^= 1 << data.draw(st.integers(0, 7))
    try:
        path.write_bytes(bytes(flipped))
        with pytest.raises(ManifestError, match=name):
            whole.load(manifest, name)
    finally:
        path.write_bytes(content)
    whole.load(manifest, name)


@settings(
    deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(content=st.binary(max_size=400))
def test_any_bytes_in_place_of_a_file_are_refused(tmp_path: Path, content: bytes):
    folder = BankFolder(tmp_path, "abc")
    folder.building.mkdir(exist_ok=True)
    (folder.building / "a.safetensors").write_bytes(content)
    assert folder.read_part("a.safetensors") is None
    folder.path.mkdir(exist_ok=True)
    (folder.path / "recall.json").write_bytes(content)
    assert folder.read_recall() is None


def test_a_file_without_our_mark_is_not_a_part(tmp_path: Path):
    folder = BankFolder(tmp_path, "abc")
    folder.building.mkdir()
    save_file({"x": torch.ones(2)}, folder.building / "a.safetensors")
    assert folder.read_part("a.safetensors") is None
