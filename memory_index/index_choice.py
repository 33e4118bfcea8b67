"""Which kind of index a bank gets, and who shares it; decided by its size alone.

Free of torch. Every rank decides alike, because nothing here depends on the rank.
"""

import math
from dataclasses import dataclass
from typing import Literal

from memory_index.config import BankConfig, IndexKind

# Searched whole: a step's 64 queries take about 30 ms of one core up to here.
SMALL_BANK = 100_000
# A copy of the index on every rank costs no communication; up to here also no memory to speak of.
REPLICATED_GIB = 0.25
# FAISS wants at least 39 training points per centroid.
POINTS_PER_LIST = 40

ShardGroup = Literal["rank", "node", "world"]


@dataclass(frozen=True, kw_only=True)
class IndexChoice:
    """How a bank is searched."""

    kind: IndexKind
    nlist: int
    """Lists of an ivf kind, 0 for the others."""

    group: ShardGroup
    """Ranks that share one copy."""

    reason: str
    """Why, for the log."""

    @property
    def is_exact(self) -> bool:
        """Whether it finds the true neighbours always."""
        return self.kind in ("exact", "flat")

    @property
    def stores_keys(self) -> bool:
        """Whether keys are kept as they are; ivf_sq8 and ivf_pq keep codes of fewer bytes."""
        return self.kind not in ("ivf_sq8", "ivf_pq")


def choose_index(
    config: BankConfig,
    num_entries: int,
    width: int,
    *,
    on_gpu: bool,
    ranks_per_node: int,
    num_nodes: int,
) -> IndexChoice:
    """Choose kind, lists and sharing.

    Args:
        config: What was asked for; ``auto`` leaves it to the size.
        num_entries: M.
        width: Width of a key.
        on_gpu: Whether the search runs on GPUs.
        ranks_per_node: Ranks of one node.
        num_nodes: Nodes of the job.

    Raises:
        ValueError: One rank's part of the index takes more than ``bank.memory_gib``.
    """
    world = ranks_per_node * num_nodes
    if config.index != "auto":
        kind: IndexKind = config.index
        why = f"bank.index={kind}"
    elif num_entries <= SMALL_BANK:
        kind = "exact" if on_gpu else "flat"
        why = f"{num_entries:,} entries are searched whole"
    else:
        budget = config.memory_gib * world
        kind = "ivf_pq"
        fitting: tuple[IndexKind, ...] = ("ivf_flat", "ivf_sq8")
        for candidate in fitting:
            if index_gib(candidate, num_entries, width) <= budget:
                kind = candidate
                break
        why = (
            f"{num_entries:,} entries take {index_gib(kind, num_entries, width):.2f} GiB "
            f"of {budget:.0f} GiB (bank.memory_gib on {world} ranks)"
        )
    size = index_gib(kind, num_entries, width)
    group: ShardGroup
    if config.shard_group != "auto":
        group = config.shard_group
    elif world == 1 or size <= REPLICATED_GIB:
        group = "rank"
    elif num_nodes > 1 and size <= config.memory_gib * ranks_per_node:
        group = "node"
    else:
        group = "world"
    sharing = {"rank": 1, "node": ranks_per_node, "world": world}[group]
    if size / sharing > config.memory_gib:
        raise ValueError(
            f"bank.memory_gib={config.memory_gib:g}: {kind} of {num_entries:,} entries takes "
            f"{size / sharing:.1f} GiB on each rank. Raise it, share the index between more ranks "
            "(bank.shard_group=world), use bank.index=ivf_pq, or keep fewer entries "
            "(bank.bank_stride, bank.max_memory_size)."
        )
    copies = {"rank": "a copy on every rank", "node": "a copy on every node",
              "world": f"one copy over {world} ranks"}  # fmt: skip
    nlist = 0
    if kind.startswith("ivf"):
        nlist = config.nlist or max(1, 4 * math.isqrt(max(1, num_entries)))
        nlist = max(1, min(nlist, num_entries // POINTS_PER_LIST))
        if config.nlist and nlist < config.nlist:
            why += f", bank.nlist={config.nlist} lowered to {nlist}: a list needs {POINTS_PER_LIST}"
    return IndexChoice(
        kind=kind, nlist=nlist, group=group, reason=f"{kind}, {copies[group]}: {why}"
    )


def index_gib(kind: str, num_entries: int, width: int) -> float:
    """GiB of one whole index, ids included."""
    return num_entries * (bytes_per_entry(kind, width) + 8) / 2**30


def bytes_per_entry(kind: str, width: int) -> int:
    """Bytes of one key as the index keeps it."""
    if kind == "ivf_sq8":
        return width
    if kind == "ivf_pq":
        return pq_bytes(width)
    if kind == "hnsw":
        return 4 * width + 4 * 2 * HNSW_LINKS
    return 4 * width


HNSW_LINKS = 32


def pq_bytes(width: int) -> int:
    """Sub-quantisers of a product quantiser: 4 dimensions, or fewer, to a byte."""
    return next(width // d for d in (4, 3, 2, 1) if width % d == 0)
