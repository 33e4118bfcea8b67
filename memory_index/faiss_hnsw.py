"""A navigable small-world graph on the CPU: fast to search, slow to build, never on disk.

Shape legend (this file):
    Q  queries     M  entries of the shard     Z2  width of a key     K  neighbours wanted
"""

import faiss
import numpy as np
import torch
from torch import Tensor

from memory_index.exact_shard import ExactShard, check_queries
from memory_index.faiss_ivf import group_equal
from memory_index.index_choice import HNSW_LINKS
from memory_index.merge import merge_neighbours

BUILD_EFFORT = 80
MAX_EFFORT = 4096


class HnswShard:
    """Keys in a graph. From ``max_effort`` on it is searched by brute force instead."""

    def __init__(self, keys: Tensor, ids: Tensor) -> None:
        """Build the graph, which takes longer than all other kinds.

        Args:
            keys: Keys of the entries. Shape (M, Z2), float32.
            ids: Their time-major ids, ascending. Shape (M,), int64.
        """
        faiss.omp_set_num_threads(torch.get_num_threads())
        self._graph = faiss.IndexHNSWFlat(keys.shape[1], HNSW_LINKS)
        self._graph.hnsw.efConstruction = BUILD_EFFORT
        if len(ids):
            self._graph.add(np.ascontiguousarray(keys.numpy()))
        self.ids = ids
        self._exact = ExactShard(self._stored_keys(keys), ids)

    def _stored_keys(self, keys: Tensor) -> Tensor:
        """The graph's own copy of the keys, so that they are held once."""
        if not len(keys):
            return keys
        storage = faiss.downcast_index(self._graph.storage)
        stored = faiss.rev_swig_ptr(storage.get_xb(), keys.numel()).reshape(keys.shape)
        return torch.from_numpy(stored)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def max_effort(self) -> int:
        """From here on nothing is missed."""
        return MAX_EFFORT

    def search(self, queries: Tensor, hidden: Tensor, k: int, effort: int) -> tuple[Tensor, Tensor]:
        """Find about the K nearest visible entries. Not collective.

        Args:
            queries: Keys of the queries. Shape (Q, Z2), float32.
            hidden: Range of ids that each must not see, first <= id < end. (Q, 2), int64.
            k: Neighbours wanted.
            effort: Candidates held while walking (efSearch).

        Returns:
            As :meth:`memory_index.exact_shard.ExactShard.search`.
        """
        if effort >= self.max_effort or not len(self):
            return self._exact.search(queries, hidden, k)
        queries, hidden = check_queries(queries, hidden, k, self._exact.keys)
        faiss.omp_set_num_threads(torch.get_num_threads())
        distances = np.full((len(queries), k), np.inf, dtype=np.float32)
        rows = np.full((len(queries), k), -1, dtype=np.int64)
        for chosen in group_equal(hidden):
            first, end = torch.searchsorted(self.ids, hidden[chosen[0]]).tolist()
            inside = faiss.IDSelectorRange(first, max(first, end))
            selector = faiss.IDSelectorNot(inside)
            settings = faiss.SearchParametersHNSW(sel=selector, efSearch=max(effort, k))
            distances[chosen], rows[chosen] = self._graph.search(
                queries[chosen].numpy(), k, params=settings
            )
        found = torch.from_numpy(rows)
        ids = self.ids[found].masked_fill(found < 0, -1)
        return merge_neighbours(torch.from_numpy(distances), ids, k)
