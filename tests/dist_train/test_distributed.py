"""dist_train/distributed.py: agreement and reductions, on one rank and on three."""

import contextlib
import threading

import pytest
import torch
import torch.distributed as dist

from dist_train import distributed
from memory_index.groups import OtherRankError
from tests.helpers.jobs import free_port, run_job
from tests.helpers.ranks import RankFailedError, run_ranks

pytestmark = pytest.mark.ranks


def reduce_and_broadcast(rank: int, world_size: int) -> None:
    mine = torch.tensor([float(rank), 1.0], dtype=torch.float64)
    total = distributed.reduce_sum(mine)
    assert total.tolist() == [sum(range(world_size)), world_size]
    assert mine.tolist() == [rank, 1.0], "the argument must not change"
    parts = [torch.ones(2), torch.tensor(float(rank))]
    distributed.sum_in_place(parts)
    assert parts[0].tolist() == [world_size] * 2
    assert parts[1].item() == sum(range(world_size))
    assert distributed.broadcast(torch.tensor([rank])).item() == 0
    assert distributed.gather_objects(rank) == list(range(world_size))
    assert distributed.is_main_rank() == (rank == 0)


@pytest.mark.parametrize("world_size", [1, 3])
def test_reductions(world_size: int):
    run_ranks(reduce_and_broadcast, world_size)


def refuse_on_rank_one(rank: int) -> None:
    with distributed.agree_or_raise("Reading the file"):
        if rank == 1:
            raise ValueError("column x is missing")


def one_rank_refuses(rank: int, world_size: int) -> None:
    with pytest.raises((ValueError, OtherRankError)) as caught:
        refuse_on_rank_one(rank)
    if rank == 1:
        assert isinstance(caught.value, ValueError)
    else:
        expected = "Reading the file failed on rank 1: ValueError: column x is missing"
        assert str(caught.value) == expected


def test_all_ranks_raise_when_one_does():
    run_ranks(one_rank_refuses, 3)


def one_rank_fails(rank: int, world_size: int) -> None:
    if rank == 1:
        raise RuntimeError("rank 1 says no")
    distributed.barrier()


def test_a_failing_rank_fails_the_test():
    with pytest.raises(RankFailedError, match="rank 1 says no"):
        run_ranks(one_rank_fails, 2)


def one_rank_hangs(rank: int, world_size: int) -> None:
    if rank == 0:
        distributed.barrier()  # rank 1 never comes


def test_a_hanging_rank_fails_the_test():
    with pytest.raises((TimeoutError, RankFailedError)):
        run_ranks(one_rank_hangs, 2, timeout_s=5.0)


def share(rank: int, world_size: int) -> None:
    assert distributed.rank_group("search", "rank").ranks == (rank,)
    world = distributed.rank_group("search", "world")
    assert world.ranks == tuple(range(world_size))
    assert world.rank == rank
    assert distributed.rank_group("search", "world") is world
    assert distributed.rank_group("build", "world") is not world


def share_in_nodes(rank: int, world_size: int, key: str, nodes: list[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(key, str(nodes[rank]))
        names = distributed.node_names()
        node = distributed.rank_group("search", "node")
        again = distributed.rank_group("measure", "node")
    assert [names[0] == name for name in names] == [nodes[0] == number for number in nodes]
    mine = [other for other in range(world_size) if nodes[other] == nodes[rank]]
    assert node.ranks == again.ranks == tuple(mine)
    assert node.ranks[node.rank] == rank
    # Traffic of one name does not wait for that of another, nor one node for the other.
    if rank == mine[0]:
        assert node.all_gather(torch.tensor(rank)).tolist() == mine
        assert again.gather_objects(-rank) == [-other for other in mine]
    else:
        thread = threading.Thread(target=again.gather_objects, args=(-rank,))
        thread.start()
        assert node.all_gather(torch.tensor(rank)).tolist() == mine
        thread.join()
    distributed.barrier()


def test_groups_of_one_rank_and_of_all():
    run_ranks(share, 3)


@pytest.mark.parametrize(
    ("key", "nodes"),
    [("GROUP_RANK", [0, 0, 1, 1]), ("SLURM_NODEID", [1, 0, 1, 0]), ("GROUP_RANK", [0, 1, 0])],
)
def test_ranks_of_a_node_share(key: str, nodes: list[int]):
    run_ranks(share_in_nodes, len(nodes), key, nodes)


def share_alone(rank: int, world_size: int) -> None:
    distributed.shut_down()
    for members in ("rank", "node", "world"):
        group = distributed.rank_group("search", members)  # type: ignore[arg-type]
        assert group.ranks == (0,)
        assert group.all_gather(torch.tensor(7)).tolist() == [7]
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0,
                                         world_size=1)  # fmt: skip
    assert distributed.rank_group("search", "world").ranks == (0,)


def test_one_rank_is_a_group_with_and_without_a_launcher():
    run_ranks(share_alone, 1)


def exchange_in_parts(rank: int, world_size: int) -> None:
    group = distributed.split_ranks([[0, 2], [1]])
    assert (group is None) == (rank == 1), "a rank that is alone has nobody to exchange with"
    if group is not None:
        tensor = torch.full((3,), float(rank + 1))
        gathered = torch.empty(6)
        distributed.all_gather_in(group, gathered, tensor)
        assert gathered.tolist() == [1.0] * 3 + [3.0] * 3
        distributed.all_reduce_in(group, tensor)
        assert tensor.tolist() == [4.0] * 3
    assert distributed.split_ranks([]) is None


def test_ranks_exchange_with_their_own_part_only():
    run_ranks(exchange_in_parts, 3)


MEET_FIRST = """
import os
from dist_train import distributed
rank, port = int(os.environ["RANK"]), int(os.environ["MASTER_PORT"])
store = distributed.open_store("127.0.0.1", port, is_host=rank == 0, timeout_s=60)
store.set(f"came/{rank}", "here")
distributed.initialize_process_group(60, store)
print(distributed.gather_objects(store.get(f"came/{1 - rank}").decode()))
distributed.barrier()
distributed.shut_down()
"""


def test_ranks_that_have_met_in_a_store_join_in_the_same():
    for ended in run_job(MEET_FIRST):
        assert (ended.code, ended.out) == (0, "['here', 'here']\n"), ended.error


def test_a_store_that_nobody_hosts_is_an_error_of_the_connection():
    with pytest.raises(RuntimeError) as caught:
        distributed.open_store("127.0.0.1", free_port(), is_host=False, timeout_s=0.5)
    assert distributed.is_connection_error(caught.value)


@pytest.mark.parametrize(("value", "hosted"), [("True", True), ("False", False), (None, False)])
def test_torchrun_says_that_it_hosts_the_store(
    value: str | None, hosted: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    if value is not None:
        monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", value)
    assert distributed.is_store_hosted() == hosted


def test_the_name_of_a_node_has_the_launcher_s_number(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SLURM_NODEID", "3")
    monkeypatch.delenv("GROUP_RANK", raising=False)
    assert distributed.node_name().endswith("/3/")


@pytest.mark.parametrize(
    ("backend", "ranks", "failing", "left"),
    [
        ("nccl", 2, False, True),
        ("nccl", 2, True, False),
        ("nccl", 1, True, True),
        ("gloo", 2, True, True),
    ],
)
def test_a_rank_that_fails_does_not_wait_for_the_others_of_an_nccl_group(
    monkeypatch: pytest.MonkeyPatch, backend: str, ranks: int, failing: bool, left: bool
):
    calls: list[str] = []
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_backend", lambda: backend)
    monkeypatch.setattr(dist, "get_world_size", lambda: ranks)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: calls.append("left"))
    with contextlib.suppress(OSError):
        try:
            if failing:
                raise OSError
        finally:
            distributed.shut_down()
    assert calls == ["left"] * left
