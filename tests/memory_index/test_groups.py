"""memory_index/groups.py: what ranks exchange, and how all of them learn that one has failed."""

from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist

from memory_index.groups import OtherRankError, RankGroup, agreed
from tests.helpers.ranks import run_ranks


def fail(error: Exception, gather: Callable[[object], list[object]]) -> None:
    with agreed("Counting", gather):
        raise error


def test_a_failure_here_is_raised_as_it_is_after_the_others_were_told():
    told: list[object] = []
    error = ValueError("three is no number")
    with pytest.raises(ValueError, match="three is no number") as raised:
        fail(error, lambda message: told.append(message) or [message, None])
    assert raised.value is error
    assert told == ["ValueError: three is no number"]


def test_a_failure_elsewhere_is_quoted_with_the_first_rank_that_had_one():
    others: list[object] = [None, "OSError: disk full", "ValueError: later"]
    with (
        pytest.raises(OtherRankError, match="Counting failed on rank 1: OSError: disk full"),
        agreed("Counting", lambda _: others),
    ):
        pass


def test_where_nothing_fails_nothing_is_raised():
    with agreed("Counting", lambda message: [message, None]):
        pass


def test_one_rank_alone_needs_no_group():
    alone = RankGroup()
    rows = torch.arange(6).reshape(3, 2)
    assert (alone.size, alone.rank, alone.ranks) == (1, 0, (0,))
    assert torch.equal(alone.all_gather(rows), rows[None])
    assert torch.equal(alone.exchange(rows[:1]), rows[:1])
    gathered = alone.gather_rows(rows)
    assert gathered is not None
    assert torch.equal(gathered, rows)
    assert alone.any(True)
    assert not alone.any(False)
    assert alone.gather_objects("one") == ["one"]
    alone.barrier()
    with pytest.raises(ValueError, match="no"), alone.agree("Nothing"):
        raise ValueError("no")


def every_exchange(rank: int, world_size: int) -> None:
    # A group of some ranks, in which no rank has the number that it has in the job.
    members = list(range(1, world_size))
    some = dist.new_group(members, backend="gloo")
    everyone = dist.new_group(backend="gloo")
    exchange(RankGroup(everyone, range(world_size), rank))
    if rank in members:
        exchange(RankGroup(some, members, rank - 1))


def exchange(group: RankGroup) -> None:
    place, size = group.rank, group.size
    assert group.all_gather(torch.tensor([place, 7])).tolist() == [[n, 7] for n in range(size)]
    assert group.all_gather(torch.empty(0, 3)).shape == (size, 0, 3)
    turned = torch.arange(6).reshape(2, 3).T + 10 * place  # not contiguous
    assert group.all_gather(turned).tolist() == [
        [[10 * n, 10 * n + 3], [10 * n + 1, 10 * n + 4], [10 * n + 2, 10 * n + 5]]
        for n in range(size)
    ]

    sent = torch.tensor([[10 * place + other, -1] for other in range(size)])
    received = [[10 * n + place, -1] for n in range(size)]
    assert group.exchange(sent).tolist() == received
    assert group.exchange(sent.T.contiguous().T).tolist() == received

    rows = group.gather_rows(torch.full((2 * place, 3), float(place)))
    if place == 0:
        assert rows is not None
        assert rows[:, 0].tolist() == [float(n) for n in range(size) for _ in range(2 * n)]
        assert rows.shape[1:] == (3,)
    else:
        assert rows is None

    assert group.any(place == size - 1)
    assert not group.any(False)
    assert group.gather_objects({"rank": place}) == [{"rank": n} for n in range(size)]
    group.barrier()

    error = ValueError if place == size - 1 else OtherRankError
    with pytest.raises(error, match="no more"), group.agree("Reading"):  # noqa: PT012
        if place == size - 1:
            raise ValueError("no more")
    assert not group.any(False)  # and the ranks are still in step


@pytest.mark.ranks
@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_exchange_by_their_place_in_the_group(world_size: int):
    run_ranks(every_exchange, world_size)
