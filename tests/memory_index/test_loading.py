"""memory_index/loading.py: one bank on any number of ranks, and what is refused by name."""

import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from memory_index.groups import RankGroup
from memory_index.sharded_index import ShardedIndex
from memory_index.store import BankFolder
from tests.helpers.ranks import run_ranks
from tests.memory_index.banks import (
    CHUNK,
    ENTRIES,
    HIDDEN,
    IDS,
    QUERIES,
    TABLE,
    Encoder,
    build,
    folder_of,
    load,
    plan_of,
    sample_of,
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
            assert int(held.max() - held.min()) <= CHUNK  # evenly
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


def test_a_bound_that_is_not_reached_is_said(tmp_path: Path):
    plan = plan_of("ivf_pq")
    folder = build(tmp_path, plan)
    for _ in range(2):  # measured, and as it was kept
        with pytest.warns(UserWarning, match=r"bank.min_recall=1: .* finds 0\.\d+ of the true"):
            load(folder, plan, encode=Encoder(), refine=1, min_recall=1.0)
    with warnings.catch_warnings():
        load(folder, plan, encode=Encoder(), refine=1, min_recall=0.1)


@pytest.mark.filterwarnings("ignore:bank.min_recall")
def test_what_was_measured_is_measured_once_and_again_where_refine_differs(tmp_path: Path):
    plan = plan_of("ivf_pq")
    folder = build(tmp_path, plan)
    encode = Encoder()
    coarse = load(folder, plan, encode=encode, refine=1)
    assert encode.asked
    first = folder.read_recall()
    assert first is not None
    assert (first["at"], first["refine"]) == (5, 1)
    assert first["queries"] == len(sample_of(plan).keys)
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
