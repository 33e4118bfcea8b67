"""Search the indexes of several sources as if they were one.

Shape legend (this file):
    S  sources     Q  queries of this rank     Z2  width of a key     K  neighbours wanted
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from memory_index.merge import merge_neighbours
from memory_index.sharded_index import ShardedIndex


class IndexUnion:
    """Collective search over the indexes of several sources; their keys are of one encoder."""

    def __init__(self, parts: Mapping[int, ShardedIndex], first_ids: Tensor) -> None:
        """Hold the indexes.

        Args:
            parts: By number of the source, ascending: those that have entries.
            first_ids: Id that each source's begin at, and the first that is none. Shape (S + 1,).
        """
        self.parts = dict(parts)
        self._first_ids = first_ids

    def search(self, queries: Tensor, hidden: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Find the K nearest entries of all sources; collective, source after source.

        A source that is hidden from all queries of all ranks is asked too, by nobody.

        Args:
            queries: Keys. Shape (Q, Z2), float32, CPU; Q may differ between ranks and be 0.
            hidden: Range of ids of each source that each must not see. (Q, S, 2), int64, CPU.
            k: Neighbours wanted; the same on every rank.

        Returns:
            As :meth:`ShardedIndex.search`. Shape (Q, K), float32 and int64, CPU.

        Raises:
            SearchError: As :meth:`ShardedIndex.search`.
        """
        distances = torch.full((len(queries), len(self.parts), k), torch.inf)
        ids = torch.full(distances.shape, -1, dtype=torch.int64)
        for place, (source, index) in enumerate(self.parts.items()):
            first, end = self._first_ids[source], self._first_ids[source + 1]
            asks = (hidden[:, source, 0] > first) | (hidden[:, source, 1] < end)
            found, local = index.search(queries[asks], hidden[asks, source] - first, k)
            distances[asks, place] = found
            ids[asks, place] = (local + first).where(local >= 0, -1)
        return merge_neighbours(distances.flatten(1), ids.flatten(1), k)
