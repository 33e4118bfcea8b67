"""What ranks run on, as rates: a few published machines, and what is assumed of them.

Peaks and links are the vendors' numbers. What a run achieves of them is an assumption wherever it
is called one; ``benchmarks.step_time`` measures the machine it runs on instead, and a plan takes
the achieved rate from its command line.
"""

from dataclasses import dataclass

from dist_train.device_peaks import PEAKS

NODE_RANKS = 8


@dataclass(frozen=True, kw_only=True)
class Link:
    """A way between two ranks, in one direction."""

    bytes_per_s: float
    latency_s: float
    """Of one message."""


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """What the ranks run on. Rates are achieved ones."""

    name: str

    flops: float
    """FLOP/s of one rank alone on the products of the model."""

    memory_bytes_per_s: float
    """Of the memory in which the optimizer works."""

    memory_gib: float
    """Of one GPU; of one rank's share of a CPU's memory."""

    ranks_per_node: int = NODE_RANKS

    intra: Link
    """Between ranks of a node."""

    inter: Link
    """From one rank to another node; every rank of a node has one."""

    host: Link
    """From one rank to any other by gloo over TCP; the memory's queries take it."""

    search_flops: float
    """FLOP/s of one rank that compares queries with all entries, by products."""

    scan_bytes_per_s: float
    """Of lists of an index that one rank reads."""

    query_s: float
    """What a query costs each shard that it is sent to, beside the entries it is compared with."""

    search_on_device: bool = False
    """Whether the search takes the time of what computes the step."""

    cores: float | None = None
    """Cores of a node, where the ranks compute on them: more ranks than cores take turns, and a
    search takes part. None: every rank has an accelerator."""

    trees: bool = True
    """Whether small all-reduces go along trees, as NCCL's do; gloo's go round a ring."""

    micro_batch_s: float = 0.0
    """What a micro-batch costs beside its operations."""

    jitter: float = 0.0
    """Spread of a rank's compute time: standard deviation of its logarithm."""


COMPUTE_SHARE = 0.4
"""Assumed: what a rank achieves of the peak of its GPU on the products of the model. Of a CPU core
87 % was measured (benchmarks/RESULTS.md, step), of no GPU."""

LINK_SHARE = 0.8
"""Assumed: what a collective achieves of a link's published rate, and the optimizer of a memory's.
A copy on an H200, of 4.8 TB/s, ran at 4.3 (docs of the parts)."""

# Latencies of one hop, ring and Simple protocol, in NCCL's own tuning model for Hopper
# (github.com/NVIDIA/nccl, src/graph/tuning.cc, hwLat): NVLink 3.4, PCIe 5.7, network 14 us.
NVLINK_S, PCIE_S, NETWORK_S = 3.4e-6, 5.7e-6, 14e-6

HOST = Link(bytes_per_s=LINK_SHARE * 12.5e9 / NODE_RANKS, latency_s=50e-6)
"""Assumed: a node's 100 Gb/s Ethernet shared by eight ranks, and a message of TCP."""

SEARCH_SHARE = 0.15
"""Of a GPU's peak, what an exact search reaches that writes its scores down: 15 to 30 % was found
on an H200 (docs of the parts)."""

QUERY_S = 1e-6
"""Assumed of a GPU: what a query costs beside the comparisons."""


def _gpu(
    name: str,
    *,
    peak: float,
    memory_gib: float,
    memory: float,
    intra: float,
    inter: float,
    hop_s: float = NVLINK_S,
) -> Hardware:
    """A node of eight, one network port each; published rates per second and direction."""
    return Hardware(
        name=name,
        flops=COMPUTE_SHARE * peak,
        memory_bytes_per_s=LINK_SHARE * memory,
        memory_gib=memory_gib,
        intra=Link(bytes_per_s=LINK_SHARE * intra, latency_s=hop_s),
        inter=Link(bytes_per_s=LINK_SHARE * inter, latency_s=NETWORK_S),
        host=HOST,
        search_flops=SEARCH_SHARE * peak,
        scan_bytes_per_s=LINK_SHARE * memory,
        query_s=QUERY_S,
        search_on_device=True,
    )


HARDWARE = {
    # NVIDIA H100 data sheet: 989 TFLOP/s bf16 dense, 3.35 TB/s, NVLink 450 GB/s each way; 400 Gb/s
    # InfiniBand NDR.
    "h100": _gpu("H100 SXM, NDR", peak=PEAKS["h100"], memory_gib=80, memory=3.35e12, intra=450e9,
                 inter=50e9),
    # NVIDIA H200 data sheet: the same, with 141 GB at 4.8 TB/s.
    "h200": _gpu("H200 SXM, NDR", peak=PEAKS["h200"], memory_gib=131, memory=4.8e12, intra=450e9,
                 inter=50e9),
    # NVIDIA A100 data sheet: 312 TFLOP/s, 2.039 TB/s, NVLink 300 GB/s each way; 200 Gb/s HDR.
    "a100": _gpu("A100 SXM 80 GB, HDR", peak=PEAKS["a100"], memory_gib=80, memory=2.039e12,
                 intra=300e9, inter=25e9),
    # NVIDIA T4 data sheet: 65 TFLOP/s fp16, 320 GB/s, PCIe 3 x16 at 16 GB/s each way; 100 Gb/s
    # Ethernet, shared.
    "t4": _gpu("T4, Ethernet", peak=PEAKS["t4"], memory_gib=15, memory=0.32e12, intra=16e9,
               inter=12.5e9 / NODE_RANKS, hop_s=PCIE_S),
}  # fmt: skip
"""By name; how they stand in docs/scaling.md."""
