"""What the collective search needs of the part of an index that one rank holds.

Shape legend (this file):
    Q  queries     Z2  width of a key     K  neighbours wanted     P  lists visited
"""

from typing import Protocol

import torch
from torch import Tensor

from memory_index.exact_shard import ExactShard
from memory_index.faiss_hnsw import HnswShard

Route = tuple[Tensor, Tensor]
"""Lists to visit, int32, and distances to their centroids, float32. Shape (Q, P) each."""


class Shard(Protocol):
    """One rank's part of an index."""

    @property
    def max_effort(self) -> int:
        """Effort from which on no entry is left out; 0 where there is no such choice."""

    def __len__(self) -> int:
        """Entries held."""

    def route(self, queries: Tensor, effort: int) -> Route:
        """Prepare queries on the rank that asks, for all ranks. (Q, Z2) -> (Q, P) twice."""

    def search(
        self, queries: Tensor, hidden: Tensor, k: int, effort: int, route: Route
    ) -> tuple[Tensor, Tensor]:
        """Nearest visible entries, nearest first, inf and -1 where none. (Q, K) each, CPU."""


def no_route(queries: Tensor) -> Route:
    """Nothing to prepare. (Q, Z2) -> (Q, 0) twice."""
    size = (len(queries), 0)
    return torch.empty(size, dtype=torch.int32), torch.empty(size)


class Unrouted:
    """A shard whose queries need no preparation: exact kinds and the graph."""

    def __init__(self, shard: ExactShard | HnswShard) -> None:
        self._shard = shard

    def __len__(self) -> int:
        return len(self._shard)

    @property
    def max_effort(self) -> int:
        """See :class:`Shard`."""
        return self._shard.max_effort if isinstance(self._shard, HnswShard) else 0

    def route(self, queries: Tensor, effort: int) -> Route:
        """See :class:`Shard`."""
        del effort
        return no_route(queries)

    def search(
        self, queries: Tensor, hidden: Tensor, k: int, effort: int, route: Route
    ) -> tuple[Tensor, Tensor]:
        """See :class:`Shard`."""
        del route
        if isinstance(self._shard, HnswShard):
            return self._shard.search(queries, hidden, k, effort)
        distances, ids = self._shard.search(queries, hidden, k)
        return distances.cpu(), ids.cpu()
