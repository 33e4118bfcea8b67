"""How many of the true neighbours a search finds, and how hard it has to try.

The true ones of a sample of entries, taken as training queries, are found while the bank is
encoded, chunk by chunk, when the keys are at hand anyway.

Shape legend (this file):
    S  sample queries     Z2  width of a key     K  AT, neighbours compared
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from memory_index.exact_shard import ExactShard
from memory_index.merge import merge_neighbours
from memory_index.sharded_index import ShardedIndex

AT = 5
NUM_QUERIES = 1024
LARGEST_EFFORT = 1024
ENOUGH = 0.999
# Recall differs between data sets of one bank, and from that of the sample: aim half-way beyond.
MARGIN = 0.5


@dataclass(frozen=True, kw_only=True, eq=False)
class SampleQueries:
    """Queries to measure with."""

    keys: Tensor
    """Shape (S, Z2), float32."""

    hidden: Tensor
    """Range of ids that each must not see. Shape (S, 2), int64."""


def sample_ids(entry_ids: Tensor) -> Tensor:
    """Even sample of entries to take as queries. (M,) -> (S,)."""
    places = np.linspace(0, len(entry_ids) - 1, min(NUM_QUERIES, len(entry_ids)))
    return entry_ids[torch.from_numpy(np.unique(places.astype(np.int64)))]


def nearest_in_chunk(keys: Tensor, ids: Tensor, sample: SampleQueries) -> dict[str, Tensor]:
    """The true neighbours of the sample among some entries, as saved with them."""
    distances, found = ExactShard(keys, ids).search(sample.keys, sample.hidden, AT)
    return {"nearest_distances": distances, "nearest_ids": found}


def merge_nearest(parts: list[dict[str, Tensor]], num_queries: int) -> tuple[Tensor, Tensor]:
    """The true neighbours among the entries of several chunks. (S, K) each."""
    empty = torch.empty(num_queries, 0)
    distances = torch.cat([empty, *(part["nearest_distances"] for part in parts)], dim=1)
    ids = torch.cat([empty.long(), *(part["nearest_ids"] for part in parts)], dim=1)
    return merge_neighbours(distances, ids, AT)


def measure_recall(
    index: ShardedIndex, sample: SampleQueries, nearest: tuple[Tensor, Tensor]
) -> dict[int, float]:
    """Measure recall at 5 for rising efforts, until nothing is missed; collective.

    Args:
        index: Its ``effort`` is changed.
        sample: The queries, equal on every rank of the index's group.
        nearest: Their true neighbours among this rank's shard. (S, K) each.

    Returns:
        Share of the true neighbours found, by effort, equal on every rank.
    """
    group = index.group
    distances, ids = (group.all_gather(part) for part in nearest)
    _, truth = merge_neighbours(
        distances.transpose(0, 1).flatten(1), ids.transpose(0, 1).flatten(1), AT
    )
    mine = slice(group.rank, None, group.size)
    curve: dict[int, float] = {}
    effort = 1
    while True:
        index.effort = min(effort, index.shard.max_effort)
        _, found = index.search(sample.keys[mine], sample.hidden[mine], AT)
        hits = (found[:, :, None] == truth[mine][:, None]) & (truth[mine] >= 0)[:, None]
        counts = torch.tensor([hits.sum(), (truth[mine] >= 0).sum()])
        hit, there = group.all_gather(counts).sum(dim=0).tolist()
        curve[index.effort] = hit / max(1, there)
        if curve[index.effort] >= ENOUGH or index.effort >= min(
            LARGEST_EFFORT, index.shard.max_effort
        ):
            return curve
        effort *= 2


def choose_effort(curve: dict[int, float], min_recall: float) -> int:
    """The smallest effort that reaches the bound with a margin, else the best there is."""
    aim = min_recall + MARGIN * (1 - min_recall)
    for effort, recall in sorted(curve.items()):
        if recall >= aim:
            return effort
    return max(curve, key=lambda effort: (curve[effort], -effort))
