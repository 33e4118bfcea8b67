"""Search the indexes of several sources as if they were one.

Shape legend (this file):
    S  sources     Q  queries of this rank     Z2  width of a key     K  neighbours wanted
    P  sources that have entries
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

        One that is hidden from all queries of all ranks that share its index is left out.

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
        asks_PQ = [
            (hidden[:, source, 0] > self._first_ids[source])
            | (hidden[:, source, 1] < self._first_ids[source + 1])
            for source in self.parts
        ]
        asked = self._asked([bool(asks_Q.any()) for asks_Q in asks_PQ])
        for place, (source, index) in enumerate(self.parts.items()):
            if not asked[place]:
                continue
            first, asks = self._first_ids[source], asks_PQ[place]
            found, local = index.search(queries[asks], hidden[asks, source] - first, k)
            distances[asks, place] = found
            ids[asks, place] = (local + first).where(local >= 0, -1)
        return merge_neighbours(distances.flatten(1), ids.flatten(1), k)

    def _asked(self, here: list[bool]) -> list[bool]:
        """Which parts are asked by some rank of those that share them; collective."""
        asked = list(here)
        sharing: dict[tuple[int, ...], list[int]] = {}
        for place, index in enumerate(self.parts.values()):
            sharing.setdefault(index.group.ranks, []).append(place)
        groups = [index.group for index in self.parts.values()]
        for places in sharing.values():
            own = torch.tensor([here[place] for place in places], dtype=torch.uint8)
            anywhere = groups[places[0]].all_gather(own).any(dim=0).tolist()
            for place, flag in zip(places, anywhere, strict=True):
                asked[place] = flag
        return asked
