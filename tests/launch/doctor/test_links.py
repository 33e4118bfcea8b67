"""launch/doctor/links.py: who exchanges with whom, and how fast; the ranks are real ones."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from dist_train import distributed
from launch.doctor import links
from launch.doctor.check import Visit
from tests.helpers.doctors import arrival, report, visit
from tests.helpers.ranks import run_ranks

FOUR = [arrival(0, "a"), arrival(1, "a"), arrival(2, "b"), arrival(3, "b"), arrival(4, "b")]


@pytest.mark.parametrize(
    ("scope", "parts"),
    [
        ("all ranks", [[0, 1, 2, 3, 4]]),
        ("inside a node", [[0, 1], [2, 3, 4]]),
        ("across nodes", [[0, 2], [1, 3], [4]]),
    ],
)
def test_who_exchanges_with_whom(scope: str, parts: list[list[int]]):
    assert links.partition(FOUR[::-1], scope) == parts


def test_one_node_or_one_rank_per_node_is_one_scope():
    assert links.partition(FOUR[1:3], "across nodes") == []
    assert links.partition(FOUR[:2], "inside a node") == []
    assert links.partition(FOUR[:2], "across nodes") == []


@pytest.mark.parametrize(
    ("operation", "ranks", "algorithm", "bus"),
    [
        # nccl-tests, doc/PERFORMANCE.md: S / t, and times 2 (n - 1) / n or (n - 1) / n.
        ("all-reduce", 2, 1.0, 1.0),
        ("all-reduce", 8, 1.0, 1.75),
        ("all-gather", 2, 1.0, 0.5),
        ("all-gather", 8, 1.0, 0.875),
    ],
)
def test_bandwidths_are_those_of_nccl_tests(
    operation: str, ranks: int, algorithm: float, bus: float
):
    assert links.bandwidths(operation, 1e9 / 2**20, 1.0, ranks) == pytest.approx((algorithm, bus))


def measured(operation: str, seconds: float, mib: float = 64) -> dict[str, Any]:
    return {"scope": "all ranks", "ranks": [0, 1], "operation": operation, "mib": mib,
            "seconds": seconds}  # fmt: skip


def test_the_slowest_rank_counts_and_a_slow_link_is_a_warning():
    reports = [
        report(0, "a", backend="gloo", timed=[measured("all-reduce", 0.1)]),
        report(1, "b", backend="gloo", timed=[measured("all-reduce", 2.0)]),
    ]
    (finding,) = links.judge(reports, visit())
    assert finding.check == "all-reduce, all ranks"
    assert finding.status == "warn"
    assert "NCCL_SOCKET_IFNAME" in finding.remedy
    assert finding.numbers["64_mib_ms"] == 2000
    assert finding.numbers["64_mib_bus_gb_per_s"] == pytest.approx(0.0336)


def test_a_short_message_is_not_called_slow():
    timed = [measured("all-gather", 0.001, 0.001), measured("all-gather", 0.01, 64)]
    (finding,) = links.judge([report(backend="nccl", timed=timed)], visit())
    assert finding.status == "ok"
    assert "0.001 MiB in 1.00 ms" in finding.found
    assert "64 MiB in 10.00 ms: 6.71 GB/s, bus 3.36 GB/s" in finding.found


def test_one_rank_has_nobody():
    (finding,) = links.judge([report(backend="gloo", timed=[])], visit())
    assert finding.status == "skip"


def exchange(rank: int, world_size: int) -> None:
    nodes = ["a", "a", "b"]
    ranks = [arrival(number, nodes[number]) for number in range(3)]
    base = visit(size_mib=(0.01, 1.0))
    meeting = SimpleNamespace(arrival=ranks[rank], store=None)
    here = Visit(config=base.config, options=base.options, meeting=cast(Any, meeting), ranks=ranks)
    facts = links.examine(here)
    scopes = [(one["scope"], one["operation"], one["mib"]) for one in facts["timed"]]
    assert len(set(scopes)) == len(scopes)
    inside, across = rank < 2, rank != 1
    assert len(scopes) == 4 * (1 + inside + across)
    assert all(one["seconds"] > 0 for one in facts["timed"])
    # A link that alters what it carries is found.
    group = distributed.split_ranks([[0, 1, 2]])
    good = torch.full((5,), 6.0)
    links._check_sent(group, "all-reduce", good, 3, rank + 1)
    good[3] += rank == 1
    if rank == 1:
        with pytest.raises(RuntimeError, match="all-reduce gave wrong numbers: 1 of 5"):
            links._check_sent(group, "all-reduce", good, 3, rank + 1)
    else:
        links._check_sent(group, "all-reduce", good, 3, rank + 1)


@pytest.mark.ranks
def test_three_ranks_on_two_nodes_exchange_in_all_scopes():
    run_ranks(exchange, 3)
