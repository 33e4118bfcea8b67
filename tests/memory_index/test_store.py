"""memory_index/store.py: parts are whole or not there, and what is not the bank's is refused."""

import errno
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from memory_index import store
from memory_index.manifest import Manifest, ManifestError
from memory_index.shared_disk import is_kept_open, try_lock
from memory_index.store import BankFolder, chunk_name, sha256_of, versions
from tests.helpers.nfs import keep_open_files

PARTS = {chunk_name(0): torch.arange(6.0).reshape(3, 2), chunk_name(1): torch.ones(2, 2)}


def publish(folder: BankFolder, parts: dict[str, torch.Tensor] = PARTS) -> Manifest:
    with folder.locked_for_building():
        files = {name: folder.write_part(name, {"keys": keys}) for name, keys in parts.items()}
        manifest = Manifest(
            identity={"x": folder.version}, fingerprint="f", num_entries=5, width=2, kind="flat",
            nlist=0, metric="squared Euclidean", created="2026-01-01T00:00:00+00:00", build_s=0.0,
            ranks=1, files=files,
        )  # fmt: skip
        folder.publish(manifest)
    return manifest


@pytest.fixture
def bank(tmp_path: Path) -> tuple[BankFolder, Manifest]:
    folder = BankFolder(tmp_path / "banks", "aaaa")
    return folder, publish(folder)


def test_what_is_written_is_read(bank: tuple[BankFolder, Manifest]):
    folder, manifest = bank
    assert folder.exists
    assert folder.open() == manifest
    for name, keys in PARTS.items():
        assert torch.equal(folder.load(manifest, name)["keys"], keys)
        assert manifest.files[name] == sha256_of(folder.path / name)
    assert {path.name for path in folder.root.iterdir()} == {"aaaa"}
    assert {path.name for path in folder.path.iterdir()} == {*PARTS, "manifest.json"}
    sizes = [path.stat().st_size for path in folder.path.iterdir()]
    assert folder.size_gib() == sum(sizes) / 2**30


def test_a_bank_that_replaces_another_leaves_nothing_of_it(bank: tuple[BankFolder, Manifest]):
    folder, _ = bank
    folder.write_recall({"curve": {1: 0.5}})
    manifest = publish(folder, {chunk_name(0): torch.zeros(5, 2)})
    assert folder.open() == manifest
    assert {path.name for path in folder.path.iterdir()} == {chunk_name(0), "manifest.json"}
    assert folder.read_recall() is None
    assert {path.name for path in folder.root.iterdir()} == {"aaaa"}


def test_a_bank_is_published_on_a_disk_that_keeps_open_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """There the lock, which is held meanwhile, and what is read of an older bank do not go."""
    keep_open_files(monkeypatch)
    folder = BankFolder(tmp_path / "banks", "aaaa")
    for keys in (torch.zeros(5, 2), torch.ones(5, 2), torch.full((5, 2), 2.0)):
        manifest = publish(folder, {chunk_name(0): keys})
        mapped = folder.load(manifest, chunk_name(0))["keys"]
        assert torch.equal(mapped, keys)
        left = {path.name for path in folder.path.iterdir() if not is_kept_open(path)}
        assert left == {chunk_name(0), "manifest.json"}
    folder.building.mkdir()
    torn = folder.building / "torn"
    torn.write_text("of a killed build")
    with torn.open():
        torn.unlink()  # and so stays under another name
        publish(folder)
    folder.delete()
    assert versions(folder.root) == []


def test_a_job_that_waited_for_a_lock_does_not_take_a_published_bank_for_its_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    one, other = (BankFolder(tmp_path, "aaaa") for _ in range(2))

    def publish_first(handle: int, path: Path) -> bool:
        monkeypatch.setattr(store, "try_lock", try_lock)
        publish(one)  # after the other has opened the lock, before it holds it
        return try_lock(handle, path)

    monkeypatch.setattr(store, "try_lock", publish_first)
    with pytest.raises(ManifestError, match="another job builds"), other.locked_for_building():
        pass
    assert one.exists


def test_a_bank_is_never_taken_apart_in_its_place(
    bank: tuple[BankFolder, Manifest], monkeypatch: pytest.MonkeyPatch
):
    folder, _ = bank
    removed, rmtree = [], shutil.rmtree

    def remember(path: Path, **options: bool) -> None:
        removed.append(path)
        rmtree(path, **options)

    monkeypatch.setattr(shutil, "rmtree", remember)
    publish(folder)
    assert set(removed) == {folder.root / ".aaaa.old"}


def test_names_of_files_are_on_disk_before_the_folder_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder, synced = BankFolder(tmp_path, "aaaa"), []
    monkeypatch.setattr(store, "sync_folder", lambda path: synced.append((path, folder.exists)))
    publish(folder)
    assert synced == [(folder.building, False), (folder.root, True)]


def test_a_torn_part_of_a_build_is_thrown_away(tmp_path: Path):
    folder, name = BankFolder(tmp_path, "aaaa"), chunk_name(0)
    folder.building.mkdir()
    assert folder.read_part(name) is None
    folder.write_part(name, {"keys": PARTS[name]})
    whole = (folder.building / name).read_bytes()
    part = folder.read_part(name)
    assert part is not None
    assert torch.equal(part["keys"], PARTS[name])
    for length in range(0, len(whole), 7):
        (folder.building / name).write_bytes(whole[:length])
        assert folder.read_part(name) is None
        assert not (folder.building / name).exists()


def test_a_failed_write_leaves_nothing_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def write_some(path: Path, tensors: object, metadata: object) -> None:
        path.write_bytes(b"some")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "write_tensors", write_some)
    folder = BankFolder(tmp_path, "aaaa")
    with folder.locked_for_building(), pytest.raises(OSError, match="No space left"):
        folder.write_part(chunk_name(0), {"keys": torch.ones(3)})
    assert [path.name for path in folder.building.iterdir()] == [".lock"]


def test_a_file_that_does_not_say_what_it_is_does_not_count_as_built(tmp_path: Path):
    folder = BankFolder(tmp_path, "aaaa")
    folder.building.mkdir()
    save_file({"keys": torch.ones(2)}, folder.building / chunk_name(0))
    assert folder.read_part(chunk_name(0)) is None


def test_a_part_of_another_bank_or_chunk_does_not_count_as_built(tmp_path: Path):
    mine, other = BankFolder(tmp_path, "aaaa"), BankFolder(tmp_path, "bbbb")
    for folder in (mine, other):
        folder.building.mkdir()
    other.write_part(chunk_name(0), {"keys": torch.ones(1, 2)})
    shutil.copy(other.building / chunk_name(0), mine.building / chunk_name(0))
    assert mine.read_part(chunk_name(0)) is None
    mine.write_part(chunk_name(0), {"keys": torch.ones(1, 2)})
    shutil.copy(mine.building / chunk_name(0), mine.building / chunk_name(1))
    assert mine.read_part(chunk_name(1)) is None
    assert mine.read_part(chunk_name(0)) is not None


def refused(folder: BankFolder, manifest: Manifest, name: str, because: str) -> None:
    with pytest.raises(ManifestError, match=f"{folder.path / name}: {because}"):
        folder.load(manifest, name)


def test_every_flipped_byte_of_a_chunk_is_refused(bank: tuple[BankFolder, Manifest]):
    folder, manifest = bank
    name = chunk_name(1)
    whole = (folder.path / name).read_bytes()
    for position in range(len(whole)):
        broken = bytearray(whole)
        broken[position] ^= 4
        (folder.path / name).write_bytes(broken)
        with pytest.raises(ManifestError, match=f"{folder.path / name}: "):
            folder.load(manifest, name)
    (folder.path / name).write_bytes(whole)
    folder.load(manifest, name)


def test_what_is_wrong_with_a_chunk_is_said_with_its_name(bank: tuple[BankFolder, Manifest]):
    folder, manifest = bank
    name, other = chunk_name(0), chunk_name(1)
    whole = (folder.path / name).read_bytes()
    (folder.path / name).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    refused(folder, manifest, name, "altered since it was built")
    shutil.copy(folder.path / other, folder.path / name)
    refused(folder, manifest, name, "is chunk_00001.safetensors under another name")
    foreign = BankFolder(folder.root, "bbbb")
    publish(foreign)
    shutil.copy(foreign.path / name, folder.path / name)
    refused(folder, manifest, name, r"belongs to another bank \(bbbb, not aaaa\)")
    (folder.path / name).unlink()
    refused(folder, manifest, name, "missing; copy the whole folder")
    refused(folder, manifest, "chunk_00007.safetensors", "missing")


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES])
@pytest.mark.parametrize("call", ["is_file", "open"])
def test_a_chunk_that_the_system_cannot_read_is_refused_with_its_words(
    bank: tuple[BankFolder, Manifest], monkeypatch: pytest.MonkeyPatch, call: str, number: int
):
    def failing(path: Path, *given: object) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, call, failing)
    refused(*bank, chunk_name(0), rf"cannot be read \({os.strerror(number)}\); build the bank anew")


def test_a_bank_under_the_name_of_another_is_refused(bank: tuple[BankFolder, Manifest]):
    folder, manifest = bank
    renamed = BankFolder(folder.root, "bbbb")
    folder.path.rename(renamed.path)
    refused(renamed, manifest, chunk_name(0), "belongs to another bank")


def test_a_measurement_comes_back_with_numbers_as_efforts(tmp_path: Path):
    folder = BankFolder(tmp_path, "aaaa")
    folder.path.mkdir()
    assert folder.read_recall() is None
    folder.write_recall({"at": 5, "curve": {1: 0.5, 16: 1.0}})
    assert folder.read_recall() == {"at": 5, "curve": {1: 0.5, 16: 1.0}}


def test_a_second_job_is_refused_until_the_first_has_ended(tmp_path: Path):
    one, other = (BankFolder(tmp_path, "aaaa") for _ in range(2))
    message = f"{one.building}: another job builds this bank right now"
    with one.locked_for_building():
        with pytest.raises(ManifestError, match=message), other.locked_for_building():
            pass
        with BankFolder(tmp_path, "bbbb").locked_for_building():  # another bank may be built
            pass
    with other.locked_for_building():
        pass


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path):
    (tmp_path / "file").write_text("not a folder")
    folder = BankFolder(tmp_path / "file" / "banks", "aaaa")
    message = rf"{folder.building}: cannot be written \(Not a directory\); name another folder with"
    with pytest.raises(ManifestError, match=message), folder.locked_for_building():
        pass


def test_finished_banks_are_listed_newest_first(tmp_path: Path):
    assert versions(tmp_path / "nowhere") == []
    for number, version in enumerate(["bbbb", "aaaa", "cccc"]):
        publish(BankFolder(tmp_path, version))
        path = tmp_path / version / "manifest.json"
        os.utime(path, (number, number))
    assert versions(tmp_path) == ["cccc", "aaaa", "bbbb"]
    # Killed between its last two steps: neither name is a version.
    shutil.copytree(tmp_path / "aaaa", tmp_path / ".aaaa.building")
    shutil.copytree(tmp_path / "aaaa", tmp_path / ".aaaa.old")
    (tmp_path / "dddd").mkdir()
    assert versions(tmp_path) == ["cccc", "aaaa", "bbbb"]


def test_a_deleted_bank_leaves_nothing_and_others_stay(bank: tuple[BankFolder, Manifest]):
    folder, _ = bank
    publish(BankFolder(folder.root, "bbbb"))
    shutil.copytree(folder.path, folder.root / ".aaaa.old")
    folder.building.mkdir()
    folder.delete()
    assert {path.name for path in folder.root.iterdir()} == {"bbbb"}
    folder.delete()


def test_parts_carry_the_names_of_their_bank_and_file(bank: tuple[BankFolder, Manifest]):
    folder, _ = bank
    with safe_open(folder.path / chunk_name(1), framework="pt") as file:
        assert file.metadata() == {"part": "aaaa/chunk_00001.safetensors"}


def test_the_same_tensors_make_the_same_file(tmp_path: Path):
    folder = BankFolder(tmp_path, "aaaa")
    folder.building.mkdir()
    tensors = {name: torch.arange(float(size)) for size, name in enumerate("abcdef")}
    assert len({folder.write_part(chunk_name(0), tensors) for _ in range(30)}) == 1
