"""memory_index/loading.py: the same bank on any number of ranks, and banks that are refused."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from memory_index.groups import RankGroup
from memory_index.manifest import ManifestError, StaleMemoryError
from memory_index.recall import sample_ids
from tests.helpers.ranks import run_ranks
from tests.memory_index.small_banks import WIDTH, Source
from tests.memory_index.brute_force import nearest_by_loop, recall, same
from tests.memory_index.shards import KINDS

EXACT, IVF = ("exact", "flat"), ("ivf_flat", "ivf_sq8", "ivf_pq")


def load_and_ask(rank: int, world_size: int, root: Path, out: Path) -> None:
    group = RankGroup(dist.group.WORLD, range(world_size), rank)
    alone = RankGroup(None, [rank])
    source = Source()
    queries, hidden = source.questions()
    for kind in KINDS:
        for sharing in (group, alone):
            source.encoded = 0
            index = source.load(root, kind, sharing)
            found = index.search(queries, hidden, 5)
            # Nothing is encoded again but candidates, and these only where codes blur them.
            assert source.encoded == 0 or kind in ("ivf_sq8", "ivf_pq")
            if sharing is group:
                assert abs(len(index.shard) - len(source.ids) / world_size) <= 1024
            name = "world" if sharing is group else "rank"
            torch.save(found, out / f"{kind}-{name}-{world_size}-{rank}.pt")


@pytest.mark.ranks
def test_a_bank_loads_on_any_number_of_ranks_and_finds_the_same(tmp_path: Path):
    source, banks, out = Source(), tmp_path / "banks", tmp_path / "out"
    out.mkdir()
    for kind in KINDS:
        source.build(banks, kind)
    for world_size in (1, 2, 3, 4):
        run_ranks(load_and_ask, world_size, banks, out)
    truth = nearest_by_loop(source.keys, source.ids, *source.questions(), 5)
    for kind in KINDS:
        one = torch.load(out / f"{kind}-world-1-0.pt")
        for path in out.glob(f"{kind}-*"):
            found = torch.load(path)
            if kind in EXACT:
                same(found, truth)
            elif kind in IVF:
                same(found, one)
            # The bound that the effort was tuned for; a graph differs with its shard.
            assert recall(found[1], truth[1]) >= (0.9 if kind in ("ivf_pq", "hnsw") else 0.98)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def of_another_bank(path: Path) -> None:
    other = Source(seed=1)
    folder = other.build(path.parents[2] / "other", "ivf_flat")
    shutil.copy(folder.path / path.name, path)


def under_another_name(path: Path) -> None:
    shutil.copy(path.with_name("chunk_00002.safetensors"), path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip, "altered since it was built"),
        (Path.unlink, "missing; copy the whole folder"),
        (of_another_bank, r"belongs to another bank \([0-9a-f]{16}, not [0-9a-f]{16}\)"),
        (under_another_name, "is chunk_00002.safetensors under another name"),
        (lambda path: path.write_bytes(b""), "altered since it was built"),
    ],
    ids=["flipped", "missing", "of another bank", "under another name", "empty"],
)
def test_a_damaged_chunk_is_refused_by_name(
    tmp_path: Path, damage: Callable[[Path], object], message: str
):
    source = Source()
    folder = source.build(tmp_path / "banks", "ivf_flat")
    path = folder.path / "chunk_00001.safetensors"
    damage(path)
    with pytest.raises(ManifestError, match=rf"{path}: {message}"):
        source.load(tmp_path / "banks", "ivf_flat")


@pytest.mark.parametrize(
    "name", ["trained.safetensors", "manifest.json", "chunk_00000.safetensors"]
)
def test_a_flipped_byte_of_any_file_is_refused(tmp_path: Path, name: str):
    source = Source()
    folder = source.build(tmp_path, "ivf_sq8")
    flip(folder.path / name)
    with pytest.raises(ManifestError, match=rf"{folder.path / name}"):
        source.load(tmp_path, "ivf_sq8")


def test_a_bank_that_does_not_fit_is_refused(tmp_path: Path):
    source = Source()
    source.build(tmp_path, "flat")
    for plan, error, message in (
        (source.plan("flat", width=WIDTH + 4), ManifestError, r"keys are 8 wide, .* makes 12"),
        (
            source.plan("flat", fingerprint="newer"),
            StaleMemoryError,
            "made by the encoder encoder 0",
        ),
        (
            source.plan("flat", identity={**source.plan("flat").identity, "seed": 7}),
            ManifestError,
            "built with another seed",
        ),
        (
            source.plan("flat", entry_ids=source.ids[:-1]),
            ManifestError,
            "another number of entries",
        ),
    ):
        with pytest.raises(error, match=message):
            source.load(tmp_path, "flat", plan=plan)


def test_the_effort_is_tuned_once_and_can_be_set_by_hand(tmp_path: Path):
    source = Source()
    folder = source.build(tmp_path, "ivf_flat")
    assert folder.read_recall() is None
    tuned = source.load(tmp_path, "ivf_flat")
    kept = folder.read_recall()
    assert kept is not None
    assert kept["queries"] == len(sample_ids(source.ids))
    written = (folder.path / "recall.json").stat().st_mtime_ns
    assert source.load(tmp_path, "ivf_flat").effort == tuned.effort
    assert (folder.path / "recall.json").stat().st_mtime_ns == written
    assert source.load(tmp_path, "ivf_flat", effort=3).effort == 3
    low = source.load(tmp_path, "ivf_flat", min_recall=0.01)
    assert low.effort < tuned.effort
    (folder.path / "recall.json").write_text("{")  # of no use: measured again
    assert source.load(tmp_path, "ivf_flat").effort == tuned.effort
