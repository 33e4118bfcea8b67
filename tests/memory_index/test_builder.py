"""memory_index/builder.py: a build that is killed goes on, and ends as if it never had been."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from memory_index.groups import OtherRankError, RankGroup
from memory_index.manifest import ManifestError
from memory_index.store import versions
from tests.helpers.ranks import run_ranks
from tests.memory_index.banks import ENTRIES, Source
from tests.memory_index.shards import KINDS

ROOT = Path(__file__).parents[2]

# Kills itself at the n-th call of a function, before or after it has done its work.
KILLED = """
import os, shutil, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from memory_index import builder, store
from tests.memory_index.banks import Source
root, kind, where, moment, count = sys.argv[1:]
owner, name = {
    "write": (store, "save_file"), "part": (store.BankFolder, "write_part"),
    "train": (builder, "train_codes"), "publish": (store, "write_manifest"),
    "rename": (Path, "replace"), "clean": (shutil, "rmtree"),
}[where]
work, calls = getattr(owner, name), [0]
def killed(*given, **options):
    if where == "rename" and not str(given[1]).rsplit("/", 1)[1][0] in "0123456789abcdef":
        return work(*given, **options)  # of files, and of the old bank aside
    calls[0] += 1
    if calls[0] == int(count) and moment == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    done = work(*given, **options)
    if calls[0] == int(count):
        os.kill(os.getpid(), signal.SIGKILL)
    return done
setattr(owner, name, killed)
Source().build(Path(root), kind)
"""


def killed_build(root: Path, kind: str, where: str, moment: str, count: int) -> None:
    command = [sys.executable, "-c", KILLED, str(root), kind, where, moment, str(count)]
    done = subprocess.run(command, cwd=ROOT, check=False, timeout=120)
    assert done.returncode == -signal.SIGKILL


def checksums(root: Path, kind: str) -> dict[str, str]:
    return Source().folder(root, kind).open().files


@pytest.mark.parametrize(
    ("where", "moment", "count"),
    [
        ("write", "before", 2),  # the first chunk is still to be written
        ("write", "after", 3),  # a chunk lies beside its place
        ("part", "after", 3),  # two chunks are in their place
        ("train", "after", 1),
        ("publish", "before", 1),
        ("publish", "after", 1),
        ("rename", "before", 1),
        ("rename", "after", 1),
    ],
)
def test_a_killed_build_goes_on_and_equals_one_that_was_not(
    tmp_path: Path, where: str, moment: str, count: int
):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    Source().build(whole, "ivf_sq8")
    killed_build(broken, "ivf_sq8", where, moment, count)
    source = Source()
    if (where, moment) == ("rename", "after"):
        assert versions(broken)  # it was done
    else:
        assert not versions(broken)
        building = source.folder(broken, "ivf_sq8").building
        chunks_there = len(list(building.glob("chunk_*")))
        is_trained = (building / "trained.safetensors").exists()
        source.build(broken, "ivf_sq8")
        # Every entry is encoded once for its chunk, and once for the training of so small a bank.
        expected = 0 if is_trained else ENTRIES
        expected += ENTRIES - min(ENTRIES, 1024 * chunks_there)
        assert source.encoded == expected
    assert checksums(broken, "ivf_sq8") == checksums(whole, "ivf_sq8")
    asked = source.questions()
    found = [source.load(root, "ivf_sq8").search(*asked, 5) for root in (whole, broken)]
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


def test_the_old_bank_loads_until_the_new_one_is_in_its_place(tmp_path: Path):
    source = Source()
    source.build(tmp_path, "flat")
    for where, moment in (("publish", "before"), ("publish", "after")):
        killed_build(tmp_path, "flat", where, moment, 1)
        source.load(tmp_path, "flat")


def build_on_ranks(rank: int, world_size: int, root: Path) -> None:
    group = RankGroup(dist.group.WORLD, range(world_size), rank)
    for kind in KINDS:
        Source().build(root, kind, group)


@pytest.mark.ranks
def test_any_number_of_ranks_builds_the_same_files(tmp_path: Path):
    for world_size in (1, 2, 3):
        run_ranks(build_on_ranks, world_size, tmp_path / str(world_size))
    for kind in KINDS:
        one = checksums(tmp_path / "1", kind)
        assert len([name for name in one if name.startswith("chunk_")]) == 3
        assert checksums(tmp_path / "2", kind) == checksums(tmp_path / "3", kind) == one


def fail_on_one(rank: int, world_size: int, root: Path) -> None:
    group = RankGroup(dist.group.WORLD, range(world_size), rank)
    source = Source()
    if rank == 1:
        source.keys[1500] = torch.nan
    error = ValueError if rank == 1 else OtherRankError
    with pytest.raises(error, match="keys must be finite"):
        source.build(root, "ivf_flat", group)
    assert not versions(root)


@pytest.mark.ranks
def test_a_key_that_is_not_finite_stops_all_ranks(tmp_path: Path):
    run_ranks(fail_on_one, 2, tmp_path)


def test_two_jobs_do_not_build_the_same_bank_at_once(tmp_path: Path):
    source = Source()
    with (
        source.folder(tmp_path, "flat").locked_for_building(),
        pytest.raises(ManifestError, match=r"another job builds this bank right now"),
    ):
        source.build(tmp_path, "flat")
    source.build(tmp_path, "flat")  # the lock goes with its holder


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ManifestError, match=r"cannot be written \(.*\); name another folder"):
        Source().build(tmp_path / "file" / "banks", "flat")


def test_progress_counts_every_entry(tmp_path: Path):
    from memory_index.builder import build_bank

    source, done = Source(), []
    plan = source.plan("flat")
    build_bank(
        source.folder(tmp_path, "flat"),
        plan,
        source.encode,
        source.sample,
        RankGroup(),
        done.append,
    )
    assert sum(done) == ENTRIES
