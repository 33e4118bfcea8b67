"""Inverted lists on the CPU: a query visits the lists whose centroids are nearest.

Shape legend (this file):
    Q  queries     M  entries of the shard     Z2  width of a key
    K  neighbours wanted     P  lists visited (nprobe)
"""

from collections.abc import Iterable
from itertools import pairwise

import faiss
import numpy as np
import torch
from torch import Tensor

from memory_index.exact_shard import check_finite
from memory_index.faiss_training import trained_index
from memory_index.index_choice import IndexChoice
from memory_index.merge import merge_neighbours

# Above this size the tables that speed a PQ search up would be larger than the codes.
MAX_TABLE_BYTES = 64 * 2**20


class IvfShard:
    """Codes of the entries in inverted lists; the exclusion is applied inside the lists."""

    def __init__(
        self,
        choice: IndexChoice,
        trained: dict[str, Tensor],
        parts: Iterable[tuple[Tensor, Tensor]],
    ) -> None:
        """Fill the lists.

        Args:
            choice: Kind and number of lists.
            trained: What the shards share, see ``faiss_training``.
            parts: Codes as :meth:`encode` makes them, uint8 (m, bytes), and ids (m,), int64.
        """
        self._index = trained_index(choice, trained)
        self.nlist = choice.nlist
        for codes, ids in parts:
            if len(ids):
                self._index.add_sa_codes(codes.numpy(), ids.numpy())
        if isinstance(self._index, faiss.IndexIVFPQ):
            table = self.nlist * self._index.pq.M * self._index.pq.ksub * 4
            self._index.use_precomputed_table = 0 if table <= MAX_TABLE_BYTES else -1
            self._index.precompute_table()

    def __len__(self) -> int:
        return int(self._index.ntotal)

    @property
    def max_effort(self) -> int:
        """Lists there are: visiting all misses nothing but what the codes blur."""
        return self.nlist

    @property
    def faiss_index(self) -> "faiss.IndexIVF":
        """The FAISS index itself, to be copied to a GPU."""
        return self._index

    def encode(self, keys: Tensor) -> Tensor:
        """Assign keys to lists and code them. (m, Z2) float32 -> (m, bytes) uint8."""
        return encode_keys(self._index, keys)

    def route(self, queries: Tensor, effort: int) -> tuple[Tensor, Tensor]:
        """Find the lists to visit; on one rank for all, as the centroids are shared.

        Args:
            queries: Keys of the queries. Shape (Q, Z2), float32.
            effort: Lists to visit.

        Returns:
            Their numbers, int32, and the distances to their centroids, float32. (Q, P) each.
        """
        faiss.omp_set_num_threads(torch.get_num_threads())
        effort = min(effort, self.nlist)
        distances, lists = self._index.quantizer.search(queries.numpy(), effort)
        return torch.from_numpy(lists.astype(np.int32)), torch.from_numpy(distances)

    def search(
        self,
        queries: Tensor,
        hidden: Tensor,
        k: int,
        effort: int,
        route: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Find the K nearest visible entries of the lists visited. Not collective.

        Args:
            queries: Keys of the queries. Shape (Q, Z2), float32.
            hidden: Range of ids that each must not see, first <= id < end. (Q, 2), int64.
            k: Neighbours wanted.
            effort: Of no matter here: the route has the lists.
            route: What :meth:`route` returned for them.

        Returns:
            ``(distances, ids)``: squared distances as the codes have them, nearest first; inf
            and -1 where fewer than K were found. Shape (Q, K), float32 and int64.

        Raises:
            ValueError: A query is not finite.
        """
        del effort
        check_finite("queries", queries)
        faiss.omp_set_num_threads(torch.get_num_threads())
        lists = np.ascontiguousarray(route[0].numpy(), dtype=np.int64)
        coarse = np.ascontiguousarray(route[1].numpy(), dtype=np.float32)
        distances = np.full((len(queries), k), np.inf, dtype=np.float32)
        ids = np.full((len(queries), k), -1, dtype=np.int64)
        vectors = np.ascontiguousarray(queries.numpy(), dtype=np.float32)
        # One selector per call, so queries of one window, whose ranges are equal and which stand
        # together, go together.
        inside = faiss.IDSelectorRange(0, 0)
        selector = faiss.IDSelectorNot(inside)
        settings = faiss.SearchParametersIVF(sel=selector, nprobe=lists.shape[1])
        ranges = hidden.numpy()
        borders = np.flatnonzero((ranges[1:] != ranges[:-1]).any(axis=1)) + 1
        pointer = faiss.swig_ptr
        for begin, stop in pairwise([0, *borders.tolist(), len(ranges)]):
            if begin == stop:
                continue
            part = slice(begin, stop)
            inside.imin, inside.imax = ranges[begin].tolist()
            # The Python wrapper of this call takes no selector.
            self._index.search_preassigned_c(
                stop - begin, pointer(vectors[part]), k, pointer(lists[part]),
                pointer(coarse[part]), pointer(distances[part]), pointer(ids[part]), False,
                settings,
            )  # fmt: skip
        return merge_neighbours(torch.from_numpy(distances), torch.from_numpy(ids), k)


def encode_keys(index: "faiss.IndexIVF", keys: Tensor) -> Tensor:
    """Assign keys to lists and code them. (m, Z2) float32 -> (m, bytes) uint8."""
    check_finite("keys", keys)
    faiss.omp_set_num_threads(torch.get_num_threads())
    return torch.from_numpy(index.sa_encode(keys.contiguous().numpy()))


def group_equal(hidden: Tensor) -> list[np.ndarray]:
    """Numbers of the queries by equal hidden range. (Q, 2) -> arrays of query numbers."""
    _, group = torch.unique(hidden, dim=0, return_inverse=True)
    order = np.argsort(group.numpy(), kind="stable")
    borders = np.flatnonzero(np.diff(group.numpy()[order])) + 1
    return np.split(order, borders) if len(order) else []
