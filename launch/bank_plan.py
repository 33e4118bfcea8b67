"""How large a memory bank is, what its search sends, and how long it takes; free of torch.

Search times are measured ones, scaled by what a query reads: on two CPU cores, in
benchmarks/RESULTS.md (retrieval: 224 queries on 1,004,479 entries of 256); they say nothing of
GPUs.
"""

import math
from dataclasses import dataclass

from dist_train.config import RunConfig
from launch.memory_plan import FLOAT32, FLOAT64, BankBytes
from memory_index.index_choice import IndexChoice, bytes_per_entry, choose_index

ID_BYTES = 8
FAISS_SCRATCH = 256 * 2**20
"""What FAISS keeps of a GPU's memory beside its indexes, as memory_index/faiss_gpu.py tells it."""

SEARCH_SOURCE = "two CPU cores, benchmarks/RESULTS.md, retrieval"
FLAT_VALUES_PER_S = 224 * 1_004_479 * 256 / 1.234
"""Numbers of keys that an exhaustive search compares: 224 queries, all keys, in 1234 ms."""

LIST_SECONDS = {"ivf_flat": 0.099, "ivf_sq8": 0.066, "ivf_pq": 0.097}
"""For 224 queries in 1,004,479 entries of 256 with 32 of 4,008 lists visited, by kind."""

LIST_ENTRIES = 224 * 1_004_479 * 32 / 4_008
LIST_WIDTH = 256

VISITED_SHARE = 0.01
"""Of a bank with lists, what a query visits to reach min_recall: 32 of 4,008 lists at 1 M entries,
128 of 12,664 at 10 M (benchmarks/RESULTS.md, retrieval)."""

HNSW_QUERY_S = 0.021 / 224
"""Of a graph, on 50,224 entries."""


@dataclass(frozen=True, kw_only=True)
class BankPlan:
    """A bank of one size."""

    entries: int
    choice: IndexChoice
    entry_bytes: int
    """Of one entry in the index, its id included."""

    index_bytes: float
    """Of one whole copy of the index."""

    sharing: int
    """Ranks that hold one copy together."""

    rank_bytes: float
    """Of the index on one rank."""

    lists_visited: int
    """By one query; 0 where there are none."""

    candidates: int
    """That one query finds in each shard."""

    query_bytes: int
    """Of one query on its way to another rank."""

    answer_bytes: int
    """Of one query's answer from one shard."""

    value_bytes: int
    """Windows and futures of one query's neighbours, read of a rank's own copy of the series."""

    query_bytes_sent: float
    """Queries that a rank gathers of all others that share its index, per micro-batch."""

    answer_bytes_sent: float
    """Candidates that it gets back, per micro-batch."""

    search_cpu_s: float
    """Seconds of a micro-batch's search on two CPU cores that hold the rank's part."""

    memory: BankBytes


def key_width(config: RunConfig) -> int:
    """Numbers in a key."""
    return config.gram.d_repr * (1 if config.gram.retrieval_key == "anchored" else 2)


def plan_bank(
    config: RunConfig,
    entries: int,
    queries: int,
    *,
    ranks: int,
    ranks_per_node: int,
    on_gpu: bool,
) -> BankPlan:
    """Plan a bank.

    Args:
        config: The run.
        entries: Of the bank.
        queries: Rows of a micro-batch of one rank.
        ranks: Of the job.
        ranks_per_node: Ranks of one node.
        on_gpu: Whether the training runs on GPUs.

    Raises:
        ValueError: A rank's part takes more than ``bank.memory_gib``.
    """
    on_device = on_gpu and config.bank.device != "cpu" and config.bank.index != "hnsw"
    width, here = key_width(config), min(ranks, ranks_per_node)
    choice = choose_index(
        config.bank, entries, width, on_gpu=on_device, ranks_per_node=here,
        num_nodes=-(-ranks // ranks_per_node),
    )  # fmt: skip
    sharing = {"rank": 1, "node": here, "world": ranks}[choice.group]
    per_entry = bytes_per_entry(choice.kind, width) + ID_BYTES
    if choice.is_exact:
        per_entry += FLOAT64  # the key's norm
    whole = entries * per_entry + choice.nlist * FLOAT32 * width * sharing
    visited = choice.nlist and (config.bank.nprobe or math.ceil(VISITED_SHARE * choice.nlist))
    # A range of two int64, the key, and of each list to visit its number and distance.
    query_bytes = 16 + FLOAT32 * width + 2 * FLOAT32 * visited
    candidates = config.gram.top_k * (1 if choice.stores_keys else config.bank.refine)
    answer_bytes = (FLOAT32 + ID_BYTES) * candidates
    scratch = FAISS_SCRATCH if on_device and not choice.is_exact else 0
    part = whole / sharing
    # Norms are summed in float64, from a copy of the keys and their squares.
    transient = 2 * FLOAT64 * width * entries / sharing if choice.is_exact else 0
    refreshed = config.gram.retrieval_key == "dual"
    return BankPlan(
        entries=entries,
        choice=choice,
        entry_bytes=per_entry,
        index_bytes=whole,
        sharing=sharing,
        rank_bytes=part,
        lists_visited=visited,
        candidates=candidates,
        query_bytes=query_bytes,
        answer_bytes=answer_bytes,
        value_bytes=FLOAT32 * config.gram.top_k * (config.data.seq_len + config.data.pred_len),
        query_bytes_sent=(sharing - 1) * queries * query_bytes,
        answer_bytes_sent=(sharing - 1) * queries * answer_bytes,
        search_cpu_s=_search_s(choice, entries / sharing, queries * sharing, width, visited),
        memory=BankBytes(
            index=part + scratch,
            building=transient + (part + scratch if refreshed else 0),
            refreshed=refreshed,
            ids=ID_BYTES * entries,
            on_device=on_device,
        ),
    )  # fmt: skip


def _search_s(choice: IndexChoice, entries: float, queries: int, width: int, visited: int) -> float:
    if choice.kind == "hnsw":
        return queries * HNSW_QUERY_S
    if choice.nlist == 0:
        return queries * entries * width / FLAT_VALUES_PER_S
    read = queries * entries * visited / choice.nlist
    return LIST_SECONDS[choice.kind] * read * width / (LIST_ENTRIES * LIST_WIDTH)
