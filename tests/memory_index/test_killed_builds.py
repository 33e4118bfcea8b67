"""A build that is killed with SIGKILL at any moment: the old bank loads, or the build goes on."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from memory_index import builder, manifest, store
from memory_index.groups import RankGroup
from memory_index.manifest import ManifestError
from memory_index.store import LOCK, TRAINED, BankFolder, chunk_name, sha256_of
from tests.helpers.ranks import RankFailedError, run_ranks
from tests.memory_index.banks import (
    CHUNK,
    IDS,
    Encoder,
    build,
    folder_of,
    load,
    plan_of,
    small_chunks,
)


def die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def dies_before(
    function: Callable[..., object], when: Callable[..., bool]
) -> Callable[..., object]:
    """Wrap a function: the process is killed instead of a call for which ``when`` is true."""

    def wrapped(*args: object, **kwargs: object) -> object:
        if when(*args, **kwargs):
            die()
        return function(*args, **kwargs)

    return wrapped


def dies_after(function: Callable[..., object], when: Callable[..., bool]) -> Callable[..., object]:
    """Wrap a function: the process is killed after a call for which ``when`` is true."""

    def wrapped(*args: object, **kwargs: object) -> object:
        result = function(*args, **kwargs)
        if when(*args, **kwargs):
            die()
        return result

    return wrapped


def set_the_trap(point: str, folder: BankFolder, doomed: str) -> None:
    """Have this process killed at one point of the build; ``doomed`` is the chunk that is meant."""
    replace, write_tensors = Path.replace, store.write_tensors
    published = folder.path

    def write_half(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
        write_tensors(path, tensors, metadata)
        if doomed in path.name:
            os.truncate(path, path.stat().st_size // 2)
            die()

    if point == "before a chunk is written":
        store.write_tensors = dies_before(write_tensors, lambda path, *_, **__: doomed in path.name)
    elif point == "while a chunk is written":
        store.write_tensors = write_half
    elif point == "before a chunk is on the disk":
        os.fsync = dies_before(
            os.fsync, lambda number: doomed in Path(f"/proc/self/fd/{number}").readlink().name
        )
    elif point == "before a chunk has its name":
        Path.replace = dies_before(replace, lambda _, target: target.name == doomed)
    elif point == "after a chunk is written":
        BankFolder.write_part = dies_after(
            BankFolder.write_part, lambda _, name, __: name == doomed
        )
    elif point == "before the index is trained":
        builder.train_codes = die
    elif point == "after the index is trained":
        BankFolder.write_part = dies_after(
            BankFolder.write_part, lambda _, name, __: name == TRAINED
        )
    elif point == "before the manifest is written":
        store.write_manifest = die
    elif point == "while the manifest is written":
        manifest.write_text = lambda path, text: (path.with_name(f".{path.name}.1").touch(), die())
    elif point == "after the manifest is written":
        store.write_manifest = dies_after(store.write_manifest, lambda *_: True)
    elif point == "between the renames":
        Path.replace = dies_before(replace, lambda _, target: target == published)
    elif point == "after the renames":
        Path.replace = dies_after(replace, lambda _, target: target == published)
    else:
        raise AssertionError(point)


POINTS = {  # and how many chunks are there afterwards
    "before a chunk is written": 4,
    "while a chunk is written": 4,
    "before a chunk is on the disk": 4,
    "before a chunk has its name": 4,
    "after a chunk is written": 5,
    "before the index is trained": 0,
    "after the index is trained": 0,
    "before the manifest is written": 10,
    "while the manifest is written": 10,
    "after the manifest is written": 10,
    "between the renames": 10,
    "after the renames": 0,  # the build is a bank
}


def build_and_die(rank: int, world_size: int, root: Path, kind: str, point: str, who: int) -> None:
    small_chunks()
    plan = plan_of(kind)
    if rank == who:
        set_the_trap(point, folder_of(root, plan), chunk_name(4 + who))
    group = RankGroup(dist.group.WORLD if world_size > 1 else None, range(world_size), rank)
    build(root, plan, group)


@pytest.fixture(autouse=True)
def ten_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    small_chunks(monkeypatch)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("uninterrupted")
    with pytest.MonkeyPatch.context() as patch:
        small_chunks(patch)
        for kind in ("flat", "ivf_sq8"):
            build(root, plan_of(kind))
    return root


def content_of(folder: BankFolder) -> dict[str, str]:
    """Checksum of each file of a published bank, the manifest aside; they are as it says.

    A job that was killed as it published has left the lock of its build there.
    """
    found = {path.name: sha256_of(path) for path in folder.path.iterdir() if path.name != LOCK}
    del found["manifest.json"]
    assert found == folder.open().files
    return found


def loads(folder: BankFolder) -> bool:
    try:
        known = folder.open()
        return all(folder.load(known, name) for name in known.files)
    except ManifestError:
        return False


def check_resumed(root: Path, kind: str, uninterrupted: Path) -> None:
    """Finish what was killed; fail unless only what was missing is done again."""
    plan = plan_of(kind)
    folder, encode = folder_of(root, plan), Encoder()
    left = {path.name for path in folder.building.iterdir()} if folder.building.exists() else set()
    missing = [number for number in range(10) if chunk_name(number) not in left]
    build(root, plan, encode=encode)
    expected = [] if kind == "flat" or TRAINED in left else IDS.tolist()  # all are trained on
    assert encode.asked == expected + [
        name for number in missing for name in IDS.split(CHUNK)[number].tolist()
    ]
    assert content_of(folder) == content_of(folder_of(uninterrupted, plan))
    assert {path.name for path in root.iterdir()} == {folder.version}
    assert len(load(folder, plan).shard) == len(IDS)


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("kind", "point"),
    [("ivf_sq8", point) for point in POINTS]
    + [("flat", point) for point in POINTS if "trained" not in point],
)
def test_a_killed_build_goes_on_and_ends_as_if_nothing_had_been(
    tmp_path: Path, uninterrupted: Path, kind: str, point: str
):
    with pytest.raises(RankFailedError, match=r"ranks \[0\] died without a traceback"):
        run_ranks(build_and_die, 1, tmp_path, kind, point, 0)
    folder = folder_of(tmp_path, plan_of(kind))
    assert folder.exists == (point == "after the renames")
    assert len(list(folder.building.glob("chunk_*"))) == POINTS[point]
    if folder.exists:
        assert content_of(folder) == content_of(folder_of(uninterrupted, plan_of(kind)))
    check_resumed(tmp_path, kind, uninterrupted)


@pytest.mark.ranks
@pytest.mark.parametrize("point", POINTS)
def test_a_bank_that_is_built_anew_is_never_lost(tmp_path: Path, uninterrupted: Path, point: str):
    old = build(tmp_path, plan_of("ivf_sq8"))
    with pytest.raises(RankFailedError, match=r"ranks \[0\] died without a traceback"):
        run_ranks(build_and_die, 1, tmp_path, "ivf_sq8", point, 0)
    assert loads(old) == (point != "between the renames")  # and then the build can go on
    check_resumed(tmp_path, "ivf_sq8", uninterrupted)


@pytest.mark.ranks
@pytest.mark.parametrize("who", [0, 1])
def test_a_build_that_lost_a_rank_goes_on_with_another_number_of_ranks(
    tmp_path: Path, uninterrupted: Path, who: int
):
    point = "after a chunk is written" if who == 0 else "before a chunk is on the disk"
    with pytest.raises(RankFailedError):
        run_ranks(build_and_die, 2, tmp_path, "ivf_sq8", point, who)
    folder = folder_of(tmp_path, plan_of("ivf_sq8"))
    assert not folder.exists
    assert 0 < len(list(folder.building.glob("chunk_*"))) < 10
    run_ranks(build_with_all, 3, tmp_path)
    assert content_of(folder) == content_of(folder_of(uninterrupted, plan_of("ivf_sq8")))


def build_with_all(rank: int, world_size: int, root: Path) -> None:
    small_chunks()
    group = RankGroup(dist.group.WORLD, range(world_size), rank)
    plan = plan_of("ivf_sq8")
    there = {path.name for path in folder_of(root, plan).building.iterdir()}
    group.barrier()
    encode = Encoder()
    build(root, plan, group, encode)
    again = torch.tensor([chunk for chunk in range(10) if chunk_name(chunk) not in there])
    mine = [chunk for chunk in again.tolist() if chunk % world_size == rank]
    assert TRAINED in there
    assert encode.asked == [name for chunk in mine for name in IDS.split(CHUNK)[chunk].tolist()]
