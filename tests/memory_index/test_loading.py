"""memory_index/loading.py: one bank on any number of ranks, and what is refused by name."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from memory_index.groups import OtherRankError, RankGroup
from memory_index.loading import check_manifest
from memory_index.manifest import ManifestError, StaleMemoryError, write_manifest
from memory_index.sharded_index import ShardedIndex
from memory_index.store import TRAINED, BankFolder, chunk_name
from tests.helpers.ranks import run_ranks
from tests.memory_index.banks import (
    ENTRIES,
    HIDDEN,
    IDS,
    QUERIES,
    TABLE,
    WIDTH,
    Encoder,
    build,
    folder_of,
    load,
    plan_of,
    small_chunks,
)
from tests.memory_index.brute_force import nearest_by_loop, recall, same
from tests.memory_index.shards import KINDS, NLIST

EXACT = ("exact", "flat")


@pytest.fixture(autouse=True)
def ten_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    small_chunks(monkeypatch)


@pytest.mark.parametrize("kind", KINDS)
def test_a_loaded_bank_finds_its_entries(tmp_path: Path, kind: str):
    folder = build(tmp_path, plan_of(kind))
    encode = Encoder()
    index = load(folder, plan_of(kind), encode=encode)
    if index.shard.max_effort:
        index.effort = index.shard.max_effort
    asked_while_loading = len(encode.asked)
    found = index.search(QUERIES, HIDDEN, 5)
    expected = nearest_by_loop(TABLE[IDS], IDS, QUERIES, HIDDEN, 5)
    assert len(index.shard) == ENTRIES
    if kind in EXACT:
        same(found, expected)
    assert recall(found[1], expected[1]) > (0.85 if kind == "ivf_pq" else 0.99)
    coded = kind in ("ivf_sq8", "ivf_pq")
    assert (len(encode.asked) > asked_while_loading) == coded
    assert coded or not encode.asked  # what keeps keys never needs the windows again


def build_on_two(rank: int, world_size: int, root: Path) -> None:
    small_chunks()
    for kind in KINDS:
        build(root, plan_of(kind), RankGroup(dist.group.WORLD, range(2), rank))


def load_on_ranks(rank: int, world_size: int, root: Path) -> None:
    """Search a bank that two ranks built with four: each alone, in pairs, three, and all."""
    small_chunks()
    pairs = [dist.new_group(members, backend="gloo") for members in ([0, 1], [2, 3])]
    three = dist.new_group([0, 1, 2], backend="gloo")
    node, place = divmod(rank, 2)
    groups = [
        RankGroup(None, [rank], 0),  # bank.shard_group=rank
        RankGroup(pairs[node], [2 * node, 2 * node + 1], place),  # node
        RankGroup(dist.group.WORLD, range(4), rank),  # world
    ]
    if rank < 3:
        groups.insert(1, RankGroup(three, range(3), rank))
    mine = slice(rank, None, 4)
    for kind in KINDS:
        plan, answers = plan_of(kind), []
        folder = folder_of(root, plan)
        for group in groups:
            encode = Encoder()
            index = load(folder, plan, group, encode, effort=200 if kind == "hnsw" else 3)
            assert kind in ("ivf_sq8", "ivf_pq") or not encode.asked
            held = group.all_gather(torch.tensor(len(index.shard)))
            assert int(held.sum()) == ENTRIES
            answers.append(index.search(QUERIES[mine], HIDDEN[mine], 5))
        expected = nearest_by_loop(TABLE[IDS], IDS, QUERIES[mine], HIDDEN[mine], 5)
        for one in answers:
            if kind == "hnsw":  # whose graphs differ; at most a few neighbours do
                assert recall(one[1], expected[1]) > 0.95
            else:
                same(one, expected if kind in EXACT else answers[0])


@pytest.mark.ranks
def test_a_bank_of_two_ranks_is_the_same_on_one_three_and_four_in_any_group(tmp_path: Path):
    run_ranks(build_on_two, 2, tmp_path)
    run_ranks(load_on_ranks, 4, tmp_path)


def tune_on_ranks(rank: int, world_size: int, root: Path) -> None:
    small_chunks()
    group = RankGroup(dist.group.WORLD, range(world_size), rank)
    plan = plan_of("ivf_flat")
    folder = folder_of(root, plan)
    first = load(folder, plan, group)
    group.barrier()
    kept = folder.read_recall()
    assert kept is not None
    efforts = group.gather_objects((first.effort, kept["curve"]))
    assert efforts == [efforts[0]] * world_size
    # One rank alone does not see the file: all measure again, and none waits.
    if rank == 0:
        (folder.path / "recall.json").unlink()
    elif rank == 1:
        type(folder).read_recall = lambda self: kept  # type: ignore[method-assign]
    group.barrier()
    again = load(folder, plan, group)
    assert again.effort == first.effort


@pytest.mark.ranks
def test_ranks_tune_together_even_if_only_some_see_what_was_measured(tmp_path: Path):
    build(tmp_path, plan_of("ivf_flat"))
    run_ranks(tune_on_ranks, 3, tmp_path)


def measured(index: ShardedIndex) -> float:
    truth = nearest_by_loop(TABLE[IDS], IDS, QUERIES, HIDDEN, 5)
    return recall(index.search(QUERIES, HIDDEN, 5)[1], truth[1])


def test_the_effort_is_what_was_asked_for_or_what_the_bound_needs(tmp_path: Path):
    plan = plan_of("ivf_flat")
    folder = build(tmp_path, plan)
    assert load(folder, plan, effort=3).effort == 3
    assert folder.read_recall() is None  # nothing had to be measured
    tuned = [load(folder, plan, min_recall=bound).effort for bound in (0.3, 0.6, 0.95)]
    assert tuned == sorted(tuned)
    assert tuned[0] < tuned[-1] <= NLIST
    assert measured(load(folder, plan, min_recall=0.95)) > 0.9


def test_what_was_measured_is_measured_once_and_again_where_refine_differs(tmp_path: Path):
    plan = plan_of("ivf_pq")
    folder = build(tmp_path, plan)
    encode = Encoder()
    coarse = load(folder, plan, encode=encode, refine=1)
    assert encode.asked
    first = folder.read_recall()
    assert first is not None
    assert (first["at"], first["refine"], first["queries"]) == (5, 1, 32)
    encode = Encoder()
    assert load(folder, plan, encode=encode, refine=1).effort == coarse.effort
    assert not encode.asked
    load(folder, plan, encode=encode, refine=8)
    assert encode.asked
    second = folder.read_recall()
    assert second is not None
    assert max(second["curve"].values()) > max(first["curve"].values())


@pytest.mark.parametrize("text", ["{}", "no json", '{"curve": {}}'])
def test_a_measurement_that_is_damaged_is_made_again(tmp_path: Path, text: str):
    plan = plan_of("ivf_flat")
    folder = build(tmp_path, plan)
    effort = load(folder, plan).effort
    (folder.path / "recall.json").write_text(text)
    assert load(folder, plan).effort == effort
    assert folder.read_recall() is not None


def test_a_bank_that_can_only_be_read_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    plan = plan_of("ivf_flat")
    folder = build(tmp_path, plan)

    def refuse(self: BankFolder, content: object) -> None:
        raise PermissionError("read-only file system")

    monkeypatch.setattr(BankFolder, "write_recall", refuse)
    assert load(folder, plan).effort > 0


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
    with pytest.raises(ManifestError, match=f"{folder.path}: was built with another entries, stride"):
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
