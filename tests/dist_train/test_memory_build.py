"""dist_train/memory_build.py: when a bank is built, loaded, refused or deleted."""

import contextlib
import errno
import json
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dist_train import distributed, local_copy, memory_build
from dist_train.data.windows import ForecastData
from dist_train.memory_build import LiveMemory, MemoryBuilder, bank_root
from memory_index import faiss_gpu, index_choice, placement, shared_disk, store
from memory_index.bank import MemoryBank
from memory_index.config import BankConfig
from memory_index.groups import OtherRankError
from memory_index.index_choice import index_gib
from memory_index.manifest import ManifestError, StaleMemoryError
from memory_index.store import BankFolder, versions
from model.config import GramConfig
from model.pattern_encoder import build_encoder
from tests.helpers.forecast_data import long_data, wide_data
from tests.helpers.nfs import remember_what_is_not_there
from tests.helpers.ranks import run_ranks

L, H = 40, 8
GRAM = GramConfig(use_gram=True, retrieval_key="dual", d_repr=8)


def data(seed: int = 0) -> ForecastData:
    values = np.random.default_rng(seed).normal(size=(400, 2)).cumsum(axis=0)
    return wide_data(values, L, H)


def state(seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return build_encoder(GRAM, L).state_dict()


class Encodings:
    """Counts the windows that are read to be encoded."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.windows = 0
        read = MemoryBank.windows

        def counted(bank: MemoryBank, ids: Tensor) -> Tensor:
            self.windows += ids.numel()
            return read(bank, ids)

        patch.setattr(MemoryBank, "windows", counted)

    def of(self, builder: MemoryBuilder, seed: int = 0) -> tuple[LiveMemory, int]:
        """Open the memory of an encoder; how many windows that took."""
        before = self.windows
        live = builder.open(state(seed))
        return live, self.windows - before


@pytest.fixture
def encodings(monkeypatch: pytest.MonkeyPatch) -> Encodings:
    return Encodings(monkeypatch)


def builder_of(root: Path | None, source: ForecastData | None = None, **bank: Any) -> MemoryBuilder:
    return MemoryBuilder(source or data(), GRAM, BankConfig(**bank), root)


@pytest.mark.parametrize("index", ["flat", "ivf_flat", "ivf_sq8"])
def test_a_bank_that_fits_is_loaded_without_encoding_it_again(
    tmp_path: Path, encodings: Encodings, index: str
):
    built, first = encodings.of(builder_of(tmp_path, index=index))
    loaded, second = encodings.of(builder_of(tmp_path, index=index))
    entries = len(builder_of(tmp_path).bank)
    assert first >= entries
    # So small a bank is its own sample of queries, which the kinds with lists are measured with.
    assert second == (0 if index == "flat" else entries)
    assert loaded.version == built.version
    queries, hidden = built.encoder(torch.randn(6, L)).key, torch.zeros(6, 2, dtype=torch.int64)
    for one, other in zip(built.index.search(queries, hidden, 3),
                          loaded.index.search(queries, hidden, 3), strict=True):  # fmt: skip
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    "change",
    [
        {"bank_stride": 2},
        {"num_samples": 50},
        {"index": "ivf_flat"},
        {"source": data(1)},
        {"gram": replace(GRAM, d_repr=16)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_content_is_another_version_beside_it(tmp_path: Path, change: dict[str, Any]):
    first = builder_of(tmp_path).open(state(0)).version
    gram = change.pop("gram", GRAM)
    other = builder_of(tmp_path, **change)
    other = MemoryBuilder(other.data, gram, other.config, tmp_path)
    torch.manual_seed(0)
    second = other.open(build_encoder(gram, L).state_dict()).version
    assert first != second
    assert set(versions(tmp_path)) == {first, second}


def test_auto_keeps_to_the_kind_that_the_entries_were_built_with(
    tmp_path: Path, encodings: Encodings
):
    """On other ranks it might choose another one, and encode everything anew."""
    built, first = encodings.of(builder_of(tmp_path, index="ivf_sq8", nlist=3))
    kept = builder_of(tmp_path)
    assert (kept.choice.kind, kept.choice.nlist) == ("ivf_sq8", 3)
    assert kept.choice.reason.endswith(f"as the bank in {tmp_path}")
    loaded, again = encodings.of(kept)
    assert loaded.version == built.version
    assert again < first
    # Another state of the encoder is searched alike, other entries as they would be anyway; and
    # what other runs have built in a folder that they share decides nothing.
    assert kept.open(state(1)).version in versions(tmp_path)
    for changed in (
        builder_of(tmp_path, bank_stride=2), builder_of(tmp_path, data(1)),
        builder_of(tmp_path, index="flat"), builder_of(tmp_path, build="always"),
        builder_of(None), builder_of(None, path=str(tmp_path)),
    ):  # fmt: skip
        assert changed.choice.kind == "flat"


def test_of_two_kinds_auto_takes_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(index_choice, "SMALL_BANK", 0)
    own = builder_of(tmp_path)
    assert own.choice.kind == "ivf_flat"
    own.open(state(0))
    builder_of(tmp_path, index="ivf_sq8").open(state(0))
    assert builder_of(tmp_path).choice == own.choice
    # Where its own does not fit, what is there and fits.
    smaller = index_gib("ivf_sq8", len(own.bank), own.width) * 1.01
    assert builder_of(tmp_path, memory_gib=smaller).choice.kind == "ivf_sq8"


def test_what_is_searched_whole_is_one_bank_for_gpus_and_cpus(tmp_path: Path):
    made = [builder_of(tmp_path, index=index).open(state(0)) for index in ("exact", "flat")]
    assert versions(tmp_path) == [made[0].version] == [made[1].version]


def test_other_dates_of_the_same_values_are_another_version(tmp_path: Path):
    """Entries are numbered on a clock: two columns of dates in one file make two orders."""
    walk = np.random.default_rng(0).normal(size=300).cumsum()
    source = long_data([(0, walk), (30, walk[::-1])], L, H)
    late, early = source.series_set.series
    moved = replace(early, dates=early.dates + np.timedelta64(20, "h"))
    other = replace(source, series_set=replace(source.series_set, series=(late, moved)))
    versions_ = [builder_of(tmp_path, one).open(state(0)).version for one in (source, other)]
    assert versions_[0] != versions_[1]


def test_never_refuses_and_names_what_differs(tmp_path: Path):
    with pytest.raises(ManifestError, match=r"bank.build=never: .* holds no bank; build it"):
        builder_of(tmp_path, build="never").open(state(0))
    builder_of(tmp_path).open(state(0))
    with pytest.raises(ManifestError, match=r"nearest bank .* another bank_stride \(1, not 3\)"):
        builder_of(tmp_path, build="never", bank_stride=3).open(state(0))
    builder_of(tmp_path, build="never").open(state(0))


def test_always_builds_anew(tmp_path: Path, encodings: Encodings):
    builder = builder_of(tmp_path, build="always")
    _, first = encodings.of(builder)
    _, second = encodings.of(builder)
    assert first == second


def flip(root: Path, chunk: int = 0) -> str:
    """Alter one bit of a chunk; returns its name."""
    path = sorted(root.glob("*/chunk_*"))[chunk]
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(bytes(content))
    return path.name


def test_a_damaged_bank_is_built_anew_and_the_log_says_why(
    tmp_path: Path, encodings: Encodings, capsys: pytest.CaptureFixture[str]
):
    _, first = encodings.of(builder_of(tmp_path))
    name = flip(tmp_path)
    with pytest.raises(ManifestError, match=rf"{name}: altered since it was built"):
        builder_of(tmp_path, build="never").open(state(0))
    _, again = encodings.of(builder_of(tmp_path))
    assert again == first
    assert f"{name}: altered since it was built" in capsys.readouterr().out
    builder_of(tmp_path, build="never").open(state(0))


@contextlib.contextmanager
def unreadable(root: Path) -> Iterator[None]:
    """Let the disk fail for one chunk of the banks below a root, until they are built anew."""
    broken = {path.stat().st_ino for path in root.glob("*/chunk_00001.*")}
    assert broken
    read = store.sha256_of

    def failing(path: Path) -> str:
        if path.stat().st_ino in broken:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return read(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "sha256_of", failing)
        yield


def test_a_bank_that_the_disk_does_not_give_is_built_anew_and_the_log_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(placement, "SMALLEST_CHUNK", 64)
    builder_of(tmp_path).open(state(0))
    message = r"chunk_00001.safetensors: cannot be read (Input/output error); build the bank anew"
    with unreadable(tmp_path):
        with pytest.raises(ManifestError, match=re.escape(message)):
            builder_of(tmp_path, build="never").open(state(0))
        builder_of(tmp_path).open(state(0))
    assert message in capsys.readouterr().out


def test_the_copy_of_a_bank_is_read_until_the_bank_is_built_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(local_copy.VARIABLE, str(tmp_path / "node"))
    root = tmp_path / "banks"
    version = builder_of(root).open(state(0)).version
    copy = local_copy.make(root)
    opened, load = [], memory_build.load_index

    def seen(folder: BankFolder, *given: Any, **options: Any) -> Any:
        opened.append(folder.root)
        return load(folder, *given, **options)

    monkeypatch.setattr(memory_build, "load_index", seen)
    builder_of(root).open(state(1))  # another version beside it, which was not copied
    (copy / version / "recall.json").touch()  # what is measured is kept beside the copy
    builder_of(root).open(state(0))
    builder_of(root, build="always").open(state(0))
    builder_of(root).open(state(0))
    assert opened == [root, copy, root, root]


def test_keys_of_another_encoder_are_refused_as_stale_or_made_anew(tmp_path: Path):
    old = builder_of(tmp_path).open(state(0))
    new = builder_of(tmp_path / "new").open(state(1))
    assert old.fingerprint != new.fingerprint
    # What a copy into the wrong place would do: the folder of one encoder, the keys of another.
    (tmp_path / old.version).rename(tmp_path / new.version)
    with pytest.raises(StaleMemoryError, match=r"made by the encoder .*build the bank anew"):
        builder_of(tmp_path, build="never").open(state(1))
    assert builder_of(tmp_path).open(state(1)).fingerprint == new.fingerprint
    builder_of(tmp_path, build="never").open(state(1))


def test_older_banks_of_a_run_are_deleted_but_none_that_is_shared(tmp_path: Path):
    own = builder_of(tmp_path / "run")
    made = [own.open(state(seed)).version for seed in range(3)]
    own.prune({made[0], made[2]})
    assert set(versions(tmp_path / "run")) == {made[0], made[2]}
    shared = builder_of(None, path=str(tmp_path / "shared"))
    made = [shared.open(state(seed)).version for seed in range(2)]
    shared.prune({made[1]})
    assert set(versions(tmp_path / "shared")) == set(made)


def test_without_a_folder_the_bank_goes_away_with_its_builder():
    builder = builder_of(None)
    builder.open(state(0))
    root = builder.root
    assert root.is_dir()
    del builder
    assert not root.exists()


def test_a_gpu_that_is_not_there_is_refused():
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(ValueError, match=r"bank.device=gpu: there is no CUDA device here"):
        builder_of(None, device="gpu")


@pytest.mark.parametrize(
    ("index", "asked", "has_faiss", "expected"),
    [
        ("auto", "auto", True, "cuda"),
        ("exact", "auto", False, "cuda"),  # needs torch alone
        ("exact", "gpu", False, "cuda"),
        ("ivf_sq8", "auto", False, "cpu"),
        ("auto", "auto", False, "cpu"),
        ("flat", "cpu", True, "cpu"),
        ("hnsw", "auto", True, "cpu"),
    ],
)
def test_a_memory_is_searched_on_a_gpu_that_faiss_can_use(
    monkeypatch: pytest.MonkeyPatch, index: Any, asked: Any, has_faiss: bool, expected: str
):
    monkeypatch.setattr(distributed, "device", lambda: torch.device("cuda:1"))
    monkeypatch.setattr(faiss_gpu, "is_there", lambda: has_faiss)
    config = BankConfig(index=index, device=asked)
    told = pytest.warns(UserWarning, match="searched on the CPU")
    quiet = expected == "cuda" or has_faiss or asked == "cpu"
    with contextlib.nullcontext() if quiet else told:
        assert memory_build._search_device(config).type == expected


def test_a_gpu_that_faiss_cannot_use_is_refused_where_one_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(distributed, "device", lambda: torch.device("cuda:1"))
    monkeypatch.setattr(faiss_gpu, "is_there", lambda: False)
    with pytest.raises(ValueError, match=r"bank.index=flat: the FAISS .*make setup EXTRA=gpu"):
        memory_build._search_device(BankConfig(index="flat", device="gpu"))


def test_the_folder_of_a_run_is_used_where_it_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert bank_root(tmp_path) == tmp_path / "bank"
    monkeypatch.setattr(memory_build.os, "access", lambda path, mode: False)
    assert bank_root(tmp_path) is None
    builder_of(tmp_path / "bank").open(state(0))
    assert bank_root(tmp_path) == tmp_path / "bank"  # what can be read is searched


def build_where_absence_is_remembered(rank: int, world_size: int, root: Path, looks: bool) -> None:
    run = root / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared_disk, "PATIENCE_S", 5)  # waiting alone would not do
        if rank == 1:
            remember_what_is_not_there(patch, root, 300)
        if looks:
            assert not run.exists()  # as a start looks whether its name is free
        distributed.barrier()
        with distributed.agree_or_raise("Opening the run folder"):
            if rank == 0:
                run.mkdir()
        folder = bank_root(run)
        assert folder == run / "bank"
        assert versions(folder) == []
        live = builder_of(folder).open(state(0))
    assert versions(folder) == [live.version]
    (root / f"well.{looks}.{rank}").touch()


@pytest.mark.ranks
@pytest.mark.parametrize("looks", [True, False])
def test_a_node_that_does_not_see_the_folder_yet_builds_all_the_same(tmp_path: Path, looks: bool):
    """A client of NFS believes for a while that a folder is not there that the first rank made."""
    run_ranks(build_where_absence_is_remembered, 2, tmp_path, looks)
    assert len(list(tmp_path.glob(f"well.{looks}.*"))) == 2


def build_on_disks_of_their_own(rank: int, world_size: int, root: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared_disk, "PATIENCE_S", 0.2)
        with pytest.raises((ManifestError, OtherRankError), match="cannot be seen from here"):
            builder_of(root / str(rank)).open(state(0))
    (root / f"refused.{rank}").touch()
    assert rank == 0 or not list((root / "1").iterdir())


@pytest.mark.ranks
def test_a_disk_that_is_not_shared_is_refused(tmp_path: Path):
    run_ranks(build_on_disks_of_their_own, 2, tmp_path)
    assert len(list(tmp_path.glob("refused.*"))) == 2


def test_the_manifest_says_what_the_bank_is(tmp_path: Path):
    live = builder_of(tmp_path).open(state(0))
    manifest = json.loads((tmp_path / live.version / "manifest.json").read_text())
    assert manifest["fingerprint"] == live.fingerprint
    assert manifest["identity"]["retrieval_key"] == "dual"
    assert manifest["num_entries"] == len(builder_of(tmp_path).bank)
    assert manifest["width"] == 16


@pytest.mark.parametrize("index", ["flat", "ivf_flat"])
def test_nothing_random_is_drawn_beside_the_training(tmp_path: Path, index: str):
    encoder, builder = state(0), builder_of(tmp_path, index=index)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    builder.open(encoder)
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    assert after[:2] == before[:2]
    assert torch.equal(after[2], before[2])


def flip_and_open(rank: int, world_size: int, root: Path) -> None:
    placement.SMALLEST_CHUNK = 64
    for shard_group in ("world", "rank"):
        folder = root / shard_group
        bank = {"shard_group": shard_group, "index": "ivf_flat"}
        made = builder_of(folder, **bank).open(state(0))
        distributed.barrier()
        if rank == 0:
            flip(folder, chunk=1)  # where the index is shared, only the second rank reads it
        distributed.barrier()
        alone = shard_group == "world" and rank == 0
        with pytest.raises(
            OtherRankError if alone else ManifestError, match="chunk_00001.safetensors: altered"
        ):
            builder_of(folder, build="never", **bank).open(state(0))
        again = builder_of(folder, **bank).open(state(0))
        assert again.version == made.version
        builder_of(folder, build="never", **bank).open(state(0))


@pytest.mark.ranks
def test_damage_that_one_rank_meets_makes_all_refuse_or_build(tmp_path: Path):
    run_ranks(flip_and_open, 2, tmp_path)


def loading_that_fails(failure: Exception | None) -> Callable[..., Any]:
    """What loads an index, or on this rank fails."""
    load = memory_build.load_index

    def loading(*given: Any, **options: Any) -> Any:
        if failure is not None:
            raise failure
        return load(*given, **options)

    return loading


def refuse_on_the_second_rank(rank: int, world_size: int, root: Path) -> None:
    builder_of(root).open(state(0))
    torn = loading_that_fails(ManifestError("torn") if rank == 1 else None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory_build, "load_index", torn)
        expected = (OtherRankError, ManifestError)[rank]
        with pytest.raises(expected, match="torn"):
            builder_of(root, build="never").open(state(0))


@pytest.mark.ranks
def test_a_rank_that_alone_cannot_read_its_copy_does_not_leave_the_others_waiting(tmp_path: Path):
    run_ranks(refuse_on_the_second_rank, 2, tmp_path)


def open_where_the_second_rank_cannot_read(rank: int, world_size: int, root: Path) -> None:
    placement.SMALLEST_CHUNK = 64
    for shard_group in ("world", "rank"):
        folder = root / shard_group
        bank = {"shard_group": shard_group, "index": "ivf_flat"}
        made = builder_of(folder, **bank).open(state(0))
        distributed.barrier()
        with unreadable(folder) if rank == 1 else contextlib.nullcontext():
            with pytest.raises(
                (OtherRankError, ManifestError)[rank], match=r"cannot be read \(Input/output error"
            ):
                builder_of(folder, build="never", **bank).open(state(0))
            assert builder_of(folder, **bank).open(state(0)).version == made.version


@pytest.mark.ranks
def test_a_disk_that_fails_on_one_rank_makes_all_refuse_or_build(tmp_path: Path):
    run_ranks(open_where_the_second_rank_cannot_read, 2, tmp_path)


def fail_on_one_rank(rank: int, world_size: int, root: Path) -> None:
    builder_of(root).open(state(0))
    distributed.barrier()
    too_little = loading_that_fails(MemoryError("no room") if rank == 1 else None)

    def lost(folder: BankFolder) -> bool:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(folder.path))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory_build, "build_bank", None)  # which would help with neither
        patch.setattr(memory_build, "load_index", too_little)
        with pytest.raises((OtherRankError, MemoryError)[rank], match="no room"):
            builder_of(root).open(state(0))
        patch.setattr(BankFolder, "exists", property(lost))
        with pytest.raises((OSError, OtherRankError)[rank], match="Stale file handle"):
            builder_of(root).open(state(0))


@pytest.mark.ranks
def test_whatever_fails_on_one_rank_ends_all_of_them(tmp_path: Path):
    run_ranks(fail_on_one_rank, 2, tmp_path)


def close_while_the_other_reads(rank: int, world_size: int) -> None:
    load = memory_build.load_index

    def slow(*given: Any, **options: Any) -> Any:
        if rank == 1:
            time.sleep(0.5)
        return load(*given, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory_build, "load_index", slow)
        builder = builder_of(None, shard_group="rank")
        builder.open(state(0))
        builder.close()  # the first rank deletes the folder


@pytest.mark.ranks
def test_a_bank_that_goes_away_stays_until_all_have_read_it():
    run_ranks(close_while_the_other_reads, 2)
