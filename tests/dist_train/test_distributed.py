"""dist_train/distributed.py: agreement and reductions, on one rank and on three."""

import pytest
import torch

from dist_train import distributed
from memory_index.groups import OtherRankError
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
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GROUP_RANK", str(rank % 2))  # as torchrun numbers its nodes
        names = distributed.node_names()
        assert len(set(names)) == 2
        assert names[0] == names[2] != names[1]
        node = distributed.rank_group("search", "node")
    assert node.ranks == ((0, 2) if rank % 2 == 0 else (1,))
    assert node.all_gather(torch.tensor(rank)).tolist() == list(node.ranks)


def test_groups_of_ranks_of_nodes_and_of_all():
    run_ranks(share, 3)
