"""memory_index/builder.py: any number of ranks build the same files, and only what is missing."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from memory_index.builder import build_bank
from memory_index.exact_shard import ExactShard
from memory_index.groups import OtherRankError, RankGroup
from memory_index.manifest import ManifestError
from memory_index.recall import AT, SampleQueries
from memory_index.store import TRAINED, BankFolder, chunk_name, sha256_of
from tests.helpers.ranks import run_ranks
from tests.memory_index.banks import (
    CHUNK,
    ENTRIES,
    IDS,
    TABLE,
    Encoder,
    build,
    folder_of,
    plan_of,
    sample_of,
    small_chunks,
)
from tests.memory_index.shards import IVF_KINDS, KINDS, NLIST

CHUNKS = [chunk_name(number) for number in range(10)]


@pytest.fixture(autouse=True)
def ten_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    small_chunks(monkeypatch)


@pytest.mark.parametrize("kind", KINDS)
def test_a_bank_holds_its_chunks_and_what_they_share(tmp_path: Path, kind: str):
    plan = plan_of(kind)
    folder = build(tmp_path, plan)
    manifest = folder.open()
    ivf = kind in IVF_KINDS
    assert [*manifest.files] == CHUNKS + ([TRAINED] if ivf else [])
    assert {path.name for path in folder.path.iterdir()} == {*manifest.files, "manifest.json"}
    assert [path.name for path in tmp_path.iterdir()] == [folder.version]
    assert manifest.identity == plan.identity
    assert manifest.fingerprint == "the first encoder"
    assert (manifest.num_entries, manifest.width, manifest.ranks) == (ENTRIES, 8, 1)
    assert (manifest.kind, manifest.nlist) == (kind, NLIST if ivf else 0)
    rows = 0
    for number, name in enumerate(CHUNKS):
        tensors = folder.load(manifest, name)
        ids = IDS[number * CHUNK : (number + 1) * CHUNK]
        kept = tensors["codes" if ivf else "keys"]
        assert len(kept) == len(ids)
        rows += len(kept)
        if not ivf:
            assert torch.equal(kept, TABLE[ids])
        assert ("nearest_ids" in tensors) == (not plan.choice.is_exact)
        if not plan.choice.is_exact:  # the true neighbours of the sample among these entries
            sample = sample_of(plan)
            truth = ExactShard(TABLE[ids], ids).search(sample.keys, sample.hidden, AT)
            assert torch.equal(tensors["nearest_distances"], truth[0])
            assert torch.equal(tensors["nearest_ids"], truth[1])
    assert rows == ENTRIES


def test_every_entry_is_encoded_once_and_progress_counts_them(tmp_path: Path):
    encode, done = Encoder(), []
    plan = plan_of("flat")
    folder = folder_of(tmp_path, plan)
    build_bank(folder, plan, encode, sample_of(plan), RankGroup(), done.append)
    assert encode.asked == IDS.tolist()
    assert done == [CHUNK] * 9 + [ENTRIES - 9 * CHUNK]


def test_an_ivf_bank_is_trained_on_an_even_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("memory_index.builder.FEWEST_TRAINING_POINTS", 100)
    monkeypatch.setattr("memory_index.builder.POINTS_PER_LIST", 10)
    encode = Encoder()
    build(tmp_path, plan_of("ivf_flat"), encode=encode)
    trained_on = torch.tensor(encode.asked[:-ENTRIES])
    assert len(trained_on) == 100
    assert (trained_on[0], trained_on[-1]) == (IDS[0], IDS[-1])
    assert set(trained_on.diff().tolist()) == {18, 21}  # every sixth or seventh entry


def build_on_ranks(rank: int, world_size: int, root: Path, reference: Path) -> None:
    small_chunks()
    group = RankGroup(dist.group.WORLD, range(world_size), rank)
    for kind in KINDS:
        encode, plan = Encoder(), plan_of(kind)
        folder = build(root, plan, group, encode)
        manifest, alone = folder.open(), folder_of(reference, plan).open()
        assert manifest.files == alone.files, kind
        assert manifest.ranks == world_size
        chunks = IDS.split(CHUNK)[rank::world_size]
        mine = torch.cat([*chunks, torch.empty(0, dtype=torch.int64)]).tolist()
        assert encode.asked[len(encode.asked) - len(mine) :] == mine
        group.barrier()


@pytest.mark.ranks
def test_any_number_of_ranks_builds_the_same_files(tmp_path: Path):
    for kind in KINDS:
        build(tmp_path / "1", plan_of(kind))
    for world_size in (2, 3):
        run_ranks(build_on_ranks, world_size, tmp_path / str(world_size), tmp_path / "1")


@pytest.mark.parametrize("missing", [[], [0], [3, 9], list(range(10))])
def test_only_chunks_that_are_not_there_are_encoded(tmp_path: Path, missing: list[int]):
    plan = plan_of("ivf_sq8")
    whole = build(tmp_path, plan)
    checksums = whole.open().files
    whole.path.rename(whole.building)
    for number in missing:
        (whole.building / chunk_name(number)).unlink()
    (whole.building / ".chunk_00003.safetensors.4711").write_text("half of it")  # of a killed job
    encode = Encoder()
    folder = build(tmp_path, plan, encode=encode)
    assert encode.asked == [name for one in missing for name in IDS.split(CHUNK)[one].tolist()]
    manifest = folder.open()
    assert manifest.files == checksums
    assert {path.name for path in folder.path.iterdir()} == {*checksums, "manifest.json"}
    assert {name: sha256_of(folder.path / name) for name in checksums} == checksums


@pytest.mark.parametrize("kind", ["flat", "ivf_pq"])
def test_another_encoder_has_a_bank_of_its_own(tmp_path: Path, kind: str):
    one = build(tmp_path, plan_of(kind))
    encode = Encoder()
    other = build(tmp_path, plan_of(kind, fingerprint="another encoder"), encode=encode)
    assert other.path != one.path
    assert one.exists
    assert set(encode.asked) == set(IDS.tolist())


def test_a_bank_without_entries_is_a_bank(tmp_path: Path):
    plan = plan_of("flat", ids=IDS[:0])
    no_query = SampleQueries(keys=torch.empty(0, 8), hidden=torch.empty(0, 2, dtype=torch.int64))
    folder = folder_of(tmp_path, plan)
    build_bank(folder, plan, Encoder(), no_query, RankGroup())
    assert folder.open().files == {}


def test_refuses_a_second_job_that_builds_the_same_bank(tmp_path: Path):
    plan = plan_of("flat")
    folder = folder_of(tmp_path, plan)
    with (
        folder.locked_for_building(),
        pytest.raises(ManifestError, match=f"{folder.building}: another job builds this bank"),
    ):
        build(tmp_path, plan)
    build(tmp_path, plan)


def test_refuses_a_folder_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ManifestError, match=f"{tmp_path}/file/.*: cannot be written .*bank.path"):
        build(tmp_path / "file" / "bank", plan_of("flat"))


@pytest.mark.parametrize("kind", KINDS)
def test_refuses_keys_that_are_not_finite_and_publishes_nothing(tmp_path: Path, kind: str):
    plan = plan_of(kind)
    folder = folder_of(tmp_path, plan)

    class Broken(Encoder):
        def __call__(self, ids: torch.Tensor) -> torch.Tensor:
            keys = super().__call__(ids).clone()
            keys[ids == IDS[200]] = torch.nan
            return keys

    with pytest.raises(ValueError, match="keys must be finite, got 1 of"):
        build(tmp_path, plan, encode=Broken())
    assert not folder.exists


def say_no(ids: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("no such window")


def fail_on_one_rank(rank: int, world_size: int, root: Path) -> None:
    small_chunks()
    group = RankGroup(dist.group.WORLD, range(world_size), rank)
    for kind in ("flat", "ivf_flat"):
        plan = plan_of(kind)
        folder = folder_of(root, plan)
        encode: Callable[[torch.Tensor], torch.Tensor] = say_no if rank == 1 else Encoder()
        error = RuntimeError if rank == 1 else OtherRankError
        with pytest.raises(error, match="no such window"):
            build_bank(folder, plan, encode, sample_of(plan), group)
        group.barrier()
        assert not folder.exists
        build(root, plan, group)  # the lock is free again
        assert folder.exists


def wait_for_another_job(rank: int, world_size: int, root: Path) -> None:
    group = RankGroup(dist.group.WORLD, range(world_size), rank)
    error = ManifestError if rank == 0 else OtherRankError
    with pytest.raises(error, match="another job builds this bank right now"):
        build(root, plan_of("flat"), group)


def see_another_disk(rank: int, world_size: int, root: Path) -> None:
    group = RankGroup(dist.group.WORLD, range(world_size), rank)
    error = ManifestError if rank == 1 else OtherRankError
    with pytest.raises(error, match=f"{root}/1: what the first rank wrote .* cannot be seen"):
        build(root / str(rank), plan_of("flat"), group)


@pytest.mark.ranks
def test_what_fails_on_one_rank_fails_on_all(tmp_path: Path):
    run_ranks(fail_on_one_rank, 2, tmp_path)
    with folder_of(tmp_path / "locked", plan_of("flat")).locked_for_building():
        run_ranks(wait_for_another_job, 2, tmp_path / "locked")
    run_ranks(see_another_disk, 2, tmp_path / "apart")


def test_the_manifest_can_be_read_without_this_program(tmp_path: Path):
    folder = build(tmp_path, replace(plan_of("flat"), fingerprint="f"))
    content = json.loads((folder.path / "manifest.json").read_text())
    assert content["metric"] == "squared Euclidean"
    assert content["files"] == {name: sha256_of(folder.path / name) for name in CHUNKS}
    assert isinstance(folder, BankFolder)
