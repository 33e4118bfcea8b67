"""Exact nearest neighbours with FAISS's brute force, on CPU or GPU; the exclusion costs nothing.

Ids are time-major, so what a query must not see is one range of rows. The rows are halved again
and again into blocks of time: a query searches the largest blocks that it does not overlap together
with all the others, the smallest at its borders up to and from its range, and none inside it.

Shape legend (this file):
    Q  queries     M  entries of the shard     Z2  width of a key     C  candidates per query
"""

from collections.abc import Iterator

import faiss
import torch
from torch import Tensor

from memory_index.exact_shard import ExactShard
from memory_index.exclusion import visible

# A query's border blocks are searched for its window alone, so they should be small ones of many.
SMALLEST_BLOCK, LARGEST_BLOCK = 2048, 65536
BLOCKS_WANTED = 32

# FAISS multiplies matrices only above this many query values; below, single dot products took
# three times as long (256 queries on 200,000 entries).
faiss.cvar.distance_compute_blas_threshold = 1


class FlatShard(ExactShard):
    """As :class:`ExactShard`, with candidates proposed by FAISS in float32.

    Candidates are ranked by exact distances, and a query that float32 could mislead is scanned
    again, so ids and distances are those of the reference.
    """

    def _propose(self, queries: Tensor, hidden: Tensor, count: int) -> tuple[Tensor, Tensor]:
        ids = self.ids.cpu()
        first_Q, end_Q = torch.searchsorted(ids, hidden.cpu().T.contiguous())
        end_Q = end_Q.maximum(first_Q)
        best_QC = queries.new_full((len(queries), count), torch.inf)
        rows_QC = torch.full_like(best_QC, -1, dtype=torch.int64)
        smallest = max(SMALLEST_BLOCK, min(LARGEST_BLOCK, len(self) // BLOCKS_WANTED))
        for chosen, part in _segments(slice(0, len(self)), first_Q, end_Q, smallest):
            some = torch.tensor(chosen, device=queries.device)
            found, places = _nearest(queries[some], self.keys[part], count)
            both = torch.cat([best_QC[some], found], dim=1)
            both_rows = torch.cat([rows_QC[some], places + part.start], dim=1)
            kept_QC, kept = both.topk(count, largest=False, sorted=True)
            best_QC[some], rows_QC[some] = kept_QC, both_rows.gather(1, kept)
        return best_QC.double(), rows_QC.masked_fill(best_QC.isinf(), -1)

    def _scores(self, queries: Tensor, hidden: Tensor, tile: slice) -> Tensor:
        """Squared distances up to rounding, inf where hidden. (Q, tile), float32."""
        norms_Q1 = queries.square().sum(dim=1, keepdim=True)
        scores_QM = norms_Q1 + self._norms_M[tile].float() - 2 * queries @ self.keys[tile].T
        return scores_QM.masked_fill_(~visible(hidden, self.ids[tile]), torch.inf)

    def _reach(self, queries: Tensor, farthest: Tensor) -> Tensor:
        """As the reference's, with float32's rounding of the keys that can be so near at all."""
        width = self.keys.shape[1] + 8
        norm_Q = queries.double().square().sum(dim=1)
        # A key at distance d from the query is at most d longer than it.
        key_norm_Q = (norm_Q.sqrt() + farthest.double().sqrt()).square()
        error_Q = width * torch.finfo(torch.float32).eps * 2 * (norm_Q + key_norm_Q)
        return farthest.double() * (1 + 2 * torch.finfo(torch.float32).eps) + error_Q


def _segments(
    block: slice, first: Tensor, end: Tensor, smallest: int, queries: Tensor | None = None
) -> Iterator[tuple[list[int], slice]]:
    """Who searches which rows of a block, and once each: query numbers and rows, no pair empty.

    Args:
        block: Rows of the block.
        first: First hidden row of each query. Shape (Q,), int64.
        end: End of its hidden rows. Shape (Q,), int64.
        smallest: Rows of a block that is not halved.
        queries: Numbers of the queries; None: 0, 1, 2... Shape (Q,), int64.
    """
    queries = torch.arange(len(first)) if queries is None else queries
    apart = (end <= block.start) | (first >= block.stop) | (first == end)
    if apart.any():
        yield queries[apart].tolist(), block
    borders = ~apart & ((first > block.start) | (end < block.stop))
    if not borders.any():
        return
    queries, first, end = queries[borders], first[borders], end[borders]
    if block.stop - block.start > smallest:
        middle = (block.start + block.stop) // 2
        for half in (slice(block.start, middle), slice(middle, block.stop)):
            yield from _segments(half, first, end, smallest, queries)
        return
    groups: dict[tuple[int, int], list[int]] = {}
    for query, *hidden in torch.stack([queries, first, end], dim=1).tolist():
        groups.setdefault((hidden[0], hidden[1]), []).append(query)
    for (begin, stop), chosen in groups.items():
        for part in (slice(block.start, begin), slice(stop, block.stop)):
            if part.start < part.stop:
                yield chosen, part


def _nearest(queries: Tensor, keys: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The nearest rows in float32, inf and -1 where there are fewer. (Q, C) each."""
    if keys.is_cuda:
        from memory_index.faiss_gpu import nearest_on_gpu

        distances, rows = nearest_on_gpu(queries, keys, count)
    else:
        faiss.omp_set_num_threads(torch.get_num_threads())
        found = faiss.knn(queries.numpy(), keys.numpy(), count)
        distances, rows = torch.from_numpy(found[0]), torch.from_numpy(found[1])
    # FAISS pads with -1 and the largest number there is.
    return distances.masked_fill(rows < 0, torch.inf), rows
