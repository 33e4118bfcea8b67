import math
from dataclasses import replace

import pytest

from launch.hardware import HARDWARE, Hardware, Link
from launch.network import Network

# Round numbers: 100 and 10 bytes a second, 1 and 5 seconds a hop; nodes of four.
PLAIN = replace(
    HARDWARE["h100"],
    ranks_per_node=4,
    intra=Link(bytes_per_s=100, latency_s=1),
    inter=Link(bytes_per_s=10, latency_s=5),
    host=Link(bytes_per_s=50, latency_s=2),
    trees=False,
)


def ring_by_hand(ranks: int, size: float, rounds: int, hardware: Hardware) -> float:
    """Walk a chunk around one ring through all nodes, and count what each rank sends."""
    seconds = 0.0
    for _ in range(rounds):
        for hop in range(ranks - 1):
            crosses = (hop + 1) % hardware.ranks_per_node == 0
            seconds += (hardware.inter if crosses else hardware.intra).latency_s
    chunks = rounds * (ranks - 1)
    rate = hardware.intra.bytes_per_s
    if ranks > hardware.ranks_per_node:
        rate = min(rate, hardware.ranks_per_node * hardware.inter.bytes_per_s)
    return seconds + chunks * size / ranks / rate


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8, 12, 1024])
def test_rings_are_what_a_walk_around_them_takes(ranks: int):
    net = Network(PLAIN, ranks)
    assert net.all_reduce(1000).seconds == pytest.approx(ring_by_hand(ranks, 1000, 2, PLAIN))
    assert net.all_gather(1000).seconds == pytest.approx(ring_by_hand(ranks, 1000, 1, PLAIN))


def test_one_rank_sends_nothing():
    net = Network(HARDWARE["h100"], 1)
    for exchange in (net.all_reduce(1e9), net.all_gather(1e9), net.host_exchange(1e9, 1, 3)):
        assert exchange.seconds == 0
        assert exchange.bytes_per_rank == 0


def test_the_bytes_of_an_all_reduce_are_twice_those_of_its_two_halves():
    net = Network(PLAIN, 8)
    assert net.all_reduce(800).bytes_per_rank == 2 * 800 * 7 / 8
    assert net.all_gather(800).bytes_per_rank == 800 * 7 / 8


def test_the_slowest_link_bounds_the_ring():
    inside, across = Network(PLAIN, 4), Network(PLAIN, 8)
    assert inside.bytes_per_s == 100
    assert across.bytes_per_s == 40  # four ports of 10 a node
    one_port = replace(PLAIN, ranks_per_node=1)
    assert Network(one_port, 2).bytes_per_s == 10


def test_each_call_costs_its_latency():
    net = Network(PLAIN, 4)
    assert net.all_reduce(0, 3).seconds == 3 * net.all_reduce(0).seconds == 3 * 2 * 3
    assert net.all_gather(0, 5).seconds == 5 * 3


def test_small_sums_go_along_a_tree_whose_depth_is_a_logarithm():
    trees = replace(PLAIN, trees=True)
    for nodes in (2, 16, 256):
        net = Network(trees, 4 * nodes)
        expected = 2 * (4 - 1) * 1 + 2 * math.log2(nodes) * 5
        assert net.all_reduce(0).seconds == pytest.approx(expected)
        assert net.all_gather(0).seconds == Network(PLAIN, 4 * nodes).all_gather(0).seconds


def test_a_ring_is_kept_where_it_is_the_shorter_way():
    trees = replace(PLAIN, trees=True, ranks_per_node=1)
    assert Network(trees, 2).all_reduce(0).seconds == Network(PLAIN, 2).all_reduce(0).seconds * 5


def test_every_other_rank_of_a_group_gets_a_message_of_its_own():
    exchange = Network(PLAIN, 8).host_exchange(100, 4, 2)
    assert exchange.bytes_per_rank == 100 * 3 * 2
    assert exchange.seconds == 100 * 3 * 2 / 50 + 3 * 2 * 2
    assert exchange.overlaps


def test_ranks_that_share_cores_are_slower():
    shared = replace(PLAIN, cores=2.0)
    assert Network(shared, 2).stretch == 1
    assert Network(shared, 4).stretch == 2
    assert (
        Network(shared, 4).all_reduce(100).seconds == 2 * Network(PLAIN, 4).all_reduce(100).seconds
    )
    assert Network(shared, 64).stretch == 2, "a node has no more than its four ranks"
