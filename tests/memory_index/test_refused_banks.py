"""A bank that is damaged, mixed up or another one is refused, with the name of what is wrong."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch.distributed as dist

from memory_index.groups import OtherRankError, RankGroup
from memory_index.loading import check_manifest
from memory_index.manifest import ManifestError, StaleMemoryError, write_manifest
from memory_index.store import TRAINED, BankFolder, chunk_name
from tests.helpers.ranks import run_ranks
from tests.memory_index.banks import (
    ENTRIES,
    IDS,
    WIDTH,
    build,
    folder_of,
    load,
    plan_of,
    small_chunks,
)


@pytest.fixture(autouse=True)
def ten_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    small_chunks(monkeypatch)


def refused(folder: BankFolder, kind: str, name: str, because: str = "") -> None:
    with pytest.raises(ManifestError, match=f"{folder.path / name}: {because}"):
        load(folder, plan_of(kind))


@pytest.mark.parametrize("kind", ["flat", "ivf_sq8", "hnsw"])
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, kind: str):
    folder = build(tmp_path, plan_of(kind))
    names = [chunk_name(0), chunk_name(9), *([TRAINED] if kind == "ivf_sq8" else [])]
    for name in names:
        path = folder.path / name
        whole = path.read_bytes()
        for position in (0, 9, len(whole) // 2, len(whole) - 1):
            path.write_bytes(
                whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :]
            )
            refused(folder, kind, name)
        path.unlink()
        refused(folder, kind, name, "missing")
        path.write_bytes(whole)
    path = folder.path / "manifest.json"
    path.write_text(path.read_text().replace('"width": 8', '"width": 9'))
    refused(folder, kind, "manifest.json", "altered since it was written")
    path.unlink()
    with pytest.raises(ManifestError, match=f"{folder.path}: no bank here"):
        load(folder, plan_of(kind))


def test_a_chunk_of_another_bank_or_place_is_refused_by_name(tmp_path: Path):
    folder = build(tmp_path, plan_of("flat"))
    other = build(tmp_path, plan_of("flat", fingerprint="another encoder"))
    whole = (folder.path / chunk_name(2)).read_bytes()
    shutil.copy(other.path / chunk_name(2), folder.path / chunk_name(2))
    refused(folder, "flat", chunk_name(2), f"belongs to another bank .{other.version}, not")
    shutil.copy(folder.path / chunk_name(3), folder.path / chunk_name(2))
    refused(folder, "flat", chunk_name(2), "is chunk_00003.safetensors under another name")
    (folder.path / chunk_name(2)).write_bytes(whole)
    load(folder, plan_of("flat"))


def test_a_chunk_of_another_length_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = build(tmp_path, plan_of("flat"))
    monkeypatch.setattr("memory_index.placement.SMALLEST_CHUNK", 65)  # as another version might
    refused(folder, "flat", chunk_name(0), "holds 64 entries instead of 65")


def test_keys_of_another_encoder_are_stale(tmp_path: Path):
    plan = plan_of("flat")
    folder = build(tmp_path, plan)
    message = f"{folder.path}: its keys were made by the encoder the first en, .* by a newer enco"
    with pytest.raises(StaleMemoryError, match=message):
        load(folder, replace(plan, fingerprint="a newer encoder"))


def test_keys_of_another_width_are_refused(tmp_path: Path):
    plan = plan_of("flat")
    folder = build(tmp_path, plan)
    message = rf"{folder.path}: its keys are 8 wide, the encoder makes 16 \(gram.d_repr"
    with pytest.raises(ManifestError, match=message):
        load(folder, replace(plan, width=2 * WIDTH))


def test_another_identity_is_refused_with_what_differs(tmp_path: Path):
    plan = plan_of("flat")
    folder = build(tmp_path, plan)
    other = replace(plan, identity={**plan.identity, "entries": 7, "stride": 2})
    with pytest.raises(
        ManifestError, match=f"{folder.path}: was built with another entries, stride"
    ):
        load(folder, other)
    with pytest.raises(ManifestError, match="was built with another number of entries"):
        load(folder, replace(plan, entry_ids=IDS[:-1]))
    check_manifest(folder.open(), plan, folder)


def test_a_bank_signed_with_other_numbers_is_still_refused(tmp_path: Path):
    plan = plan_of("flat")
    folder = build(tmp_path, plan)
    write_manifest(folder.path, replace(folder.open(), num_entries=ENTRIES + 1))
    with pytest.raises(ManifestError, match="was built with another number of entries"):
        load(folder, plan)


def load_with_a_damaged_shard(rank: int, world_size: int, root: Path) -> None:
    small_chunks()
    group = RankGroup(dist.group.WORLD, range(world_size), rank)
    for kind in ("flat", "ivf_flat"):
        plan = plan_of(kind)
        folder = folder_of(root, plan)
        error = ManifestError if rank == 1 else OtherRankError  # chunk 4 of three ranks' chunks
        with pytest.raises(error, match=f"{folder.path / chunk_name(4)}: missing"):
            load(folder, plan, group)
        assert not group.any(False)


@pytest.mark.ranks
def test_a_chunk_that_one_rank_misses_is_refused_on_all(tmp_path: Path):
    for kind in ("flat", "ivf_flat"):
        folder = build(tmp_path, plan_of(kind))
        (folder.path / chunk_name(4)).unlink()
    run_ranks(load_with_a_damaged_shard, 3, tmp_path)
