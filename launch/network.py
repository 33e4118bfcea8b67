"""Seconds of a collective over many ranks, from the links between them.

A ring sends 2 (n - 1) / n of the bytes for an all-reduce and half of that for an all-gather or a
reduce-scatter, at the rate of the slowest link on the way, and waits for one hop after the other.
Where every rank of a node has a port of its own, as many rings share the bytes. Small all-reduces
go along trees where the library has them. Source: Patarasuk and Yuan 2009 (rings); NCCL's tuning
model, src/graph/tuning.cc (hops, trees).
"""

import math
from dataclasses import dataclass

from launch.hardware import Hardware


@dataclass(frozen=True)
class Collective:
    """One kind of exchange of a step."""

    bytes_per_rank: float
    """That a rank sends."""

    seconds: float
    overlaps: bool = False
    """Whether it runs beside the compute."""


class Network:
    """Seconds of collectives between all ranks of a job."""

    def __init__(self, hardware: Hardware, ranks: int) -> None:
        """Fill the nodes one after the other."""
        self.hardware, self.ranks = hardware, ranks
        self.ranks_here = min(ranks, hardware.ranks_per_node)
        """Ranks of a full node."""
        self.nodes = -(-ranks // hardware.ranks_per_node)
        cores = hardware.cores
        self.stretch = 1.0 if cores is None else max(1.0, self.ranks_here / cores)
        """How much slower a rank computes that shares a node's cores."""
        # Round the ring: most hops inside a node, one from each node to the next.
        between = self.nodes - 1
        inside = ranks - self.nodes
        self.round_s = inside * hardware.intra.latency_s + between * hardware.inter.latency_s
        self.bytes_per_s = hardware.intra.bytes_per_s
        if self.nodes > 1:  # one ring per link to other nodes, all at once
            together = self.ranks_here * hardware.inter.bytes_per_s
            self.bytes_per_s = min(self.bytes_per_s, together)

    def all_reduce(self, size: float, count: int = 1, *, overlaps: bool = False) -> Collective:
        """Sum ``size`` bytes over the ranks, in ``count`` calls."""
        ring = 2 * self.round_s * count
        sent = 2 * size * (self.ranks - 1) / self.ranks
        if self.hardware.trees and self.ranks > 1:
            # Up and down: along the ranks of a node, then from node to node.
            inside = 2 * (self.ranks_here - 1) * self.hardware.intra.latency_s
            between = 2 * math.ceil(math.log2(self.nodes)) * self.hardware.inter.latency_s
            ring = min(ring, (inside + between) * count)
        return self._of(sent, ring, overlaps)

    def all_gather(self, size: float, count: int = 1, *, overlaps: bool = False) -> Collective:
        """Bring ``size`` bytes, of which each rank has its part, to all; or reduce and scatter."""
        sent = size * (self.ranks - 1) / self.ranks
        return self._of(sent, self.round_s * count, overlaps)

    def host_flag(self) -> Collective:
        """All-reduce one byte over gloo, which passes it on twice around all ranks."""
        waited = 2 * (self.ranks - 1) * self.hardware.host.latency_s
        return Collective(2 * (self.ranks - 1) / self.ranks, waited * self.stretch)

    def _of(self, sent: float, latency_s: float, overlaps: bool) -> Collective:
        seconds = (sent / self.bytes_per_s + latency_s) * self.stretch
        return Collective(sent, seconds, overlaps)

    def host_exchange(self, size: float, group: int, count: int) -> Collective:
        """Send ``size`` bytes to each other rank of a group, ``count`` times, over the hosts.

        Gloo's all-gather and all-to-all both take a message to, or from, each other rank.
        """
        host = self.hardware.host
        sent = size * (group - 1) * count
        waited = sent / host.bytes_per_s + (group - 1) * host.latency_s * count
        return Collective(sent, waited * self.stretch, overlaps=True)
