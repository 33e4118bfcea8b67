"""Exact nearest neighbours by brute force: the reference, and the GPU path for small banks.

Shape legend (this file):
    Q  queries     M  entries of the shard     Z2  width of a key
    K  neighbours wanted     C  candidates kept per query, K plus a margin     V  pairs to verify
"""

import torch
from torch import Tensor

from memory_index.exclusion import visible

# Entries and queries per tile: scores of one tile take 16 MiB whatever the size of the bank.
ENTRY_TILE = 16384
QUERY_TILE = 128

# Candidates beyond K that a matrix product proposes and differences then rank.
MARGIN = 32

_NOWHERE = -1


class ExactShard:
    """Keys with ids, searched exactly, the exclusion applied inside the search.

    A float64 matrix product proposes candidates; their distances are then recomputed as sums of
    squared differences, which equal keys make equal on every machine, and rounded to float32.
    Ties go to the smaller id. Where so many entries lie within the product's rounding of the
    K-th that one could be missed (windows without variance have equal keys by the thousand), the
    query is scanned again with all of them.
    """

    def __init__(self, keys: Tensor, ids: Tensor) -> None:
        """Hold the shard.

        Args:
            keys: Keys of the entries. Shape (M, Z2), float32; its device is the search's.
            ids: Their time-major ids, ascending, none negative. Shape (M,), int64.

        Raises:
            ValueError: The shapes do not fit, a key is not finite, or the ids do not ascend.
        """
        if keys.ndim != 2 or ids.shape != keys.shape[:1]:
            raise ValueError(
                f"a shard needs keys (M, Z2) and ids (M,), got shapes {tuple(keys.shape)} and "
                f"{tuple(ids.shape)}."
            )
        check_finite("keys", keys)
        if len(ids) and (int(ids[0]) < 0 or not bool((ids[1:] > ids[:-1]).all())):
            raise ValueError("ids must ascend from 0 on, none twice: sort keys and ids together.")
        self.keys = keys.float()
        self.ids = ids.to(keys.device)
        # An empty shard has no largest norm.
        self._norms_M = self.keys.double().square().sum(dim=1)

    def __len__(self) -> int:
        return len(self.keys)

    @torch.no_grad()
    def search(self, queries: Tensor, hidden: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Find the K nearest entries that each query may see. Not collective.

        Args:
            queries: Keys of the queries. Shape (Q, Z2), floating point.
            hidden: Range of ids that each must not see, first <= id < end. (Q, 2), int64.
            k: Neighbours wanted, at least 1.

        Returns:
            ``(distances, ids)``: squared Euclidean distances, nearest first, equal ones by
            ascending id; inf and -1 where fewer than K are visible. Shape (Q, K), float32 and
            int64.

        Raises:
            ValueError: ``k`` is below 1, a query is not finite, or its width is not Z2.
        """
        queries, hidden = check_queries(queries, hidden, k, self.keys)
        distances = queries.new_full((len(queries), k), torch.inf)
        ids = torch.full_like(distances, _NOWHERE, dtype=torch.int64)
        if len(self):
            for tile in tiles(len(queries), QUERY_TILE):
                distances[tile], ids[tile] = self._search_tile(queries[tile], hidden[tile], k)
        return distances, ids

    def _search_tile(self, queries: Tensor, hidden: Tensor, k: int) -> tuple[Tensor, Tensor]:
        approximate_QC, rows_QC = self._propose(queries, hidden, k + MARGIN)
        exact_QC = self._distances(queries[:, None], rows_QC)
        distances_QK, rows_QK = self._rank(exact_QC, rows_QC, k)

        reach_Q = self._reach(queries, distances_QK[:, -1])
        # An inf among the candidates says that every visible entry is one of them.
        crowded = (approximate_QC[:, -1] <= reach_Q) & approximate_QC[:, -1].isfinite()
        for query in crowded.nonzero()[:, 0].tolist():
            one = slice(query, query + 1)
            distances_QK[one], rows_QK[one] = self._scan(queries[one], hidden[one], k, reach_Q[one])
        return distances_QK, self._ids_of(rows_QK)

    def _propose(self, queries: Tensor, hidden: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Nearest ``count`` up to rounding, inf where there are fewer. (Q, C) float64 and rows."""
        best_QC = queries.new_full((len(queries), count), torch.inf, dtype=torch.float64)
        rows_QC = torch.full_like(best_QC, _NOWHERE, dtype=torch.int64)
        for tile in tiles(len(self), ENTRY_TILE):
            scores_QM = self._scores(queries, hidden, tile)
            found_QC, columns_QC = scores_QM.topk(min(count, scores_QM.shape[1]), largest=False)
            both = torch.cat([best_QC, found_QC], dim=1)
            both_rows = torch.cat([rows_QC, columns_QC + tile.start], dim=1)
            best_QC, kept = both.topk(count, largest=False, sorted=True)
            rows_QC = both_rows.gather(1, kept)
        return best_QC, rows_QC.masked_fill(best_QC.isinf(), _NOWHERE)

    def _scores(self, queries: Tensor, hidden: Tensor, tile: slice) -> Tensor:
        """Squared distances up to rounding, inf where hidden. (Q, tile), float64."""
        queries_QZ = queries.double()
        # TF32 and float32 would round away the order of near neighbours.
        products_QM = queries_QZ @ self.keys[tile].double().T
        norms_Q1 = queries_QZ.square().sum(dim=1, keepdim=True)
        scores_QM = norms_Q1 + self._norms_M[tile] - 2 * products_QM
        return scores_QM.masked_fill_(~visible(hidden, self.ids[tile]), torch.inf)

    def _reach(self, queries: Tensor, farthest: Tensor) -> Tensor:
        """Score above which no entry can be among the K nearest: the K-th plus both roundings."""
        width = self.keys.shape[1] + 8
        norms_Q = queries.double().square().sum(dim=1) + self._norms_M.amax()
        product_error_Q = width * torch.finfo(torch.float64).eps * 4 * norms_Q
        return farthest.double() * (1 + 2 * torch.finfo(torch.float32).eps) + product_error_Q

    def _scan(self, query: Tensor, hidden: Tensor, k: int, reach: Tensor) -> tuple[Tensor, Tensor]:
        """Rank every entry within reach of one query. (1, K) distances and rows."""
        best_1K = query.new_full((1, k), torch.inf)
        rows_1K = torch.full_like(best_1K, _NOWHERE, dtype=torch.int64)
        for tile in tiles(len(self), ENTRY_TILE):
            scores_1M = self._scores(query, hidden, tile)
            rows_1V = (scores_1M[0] <= reach).nonzero().T + tile.start
            exact_1V = self._distances(query[:, None], rows_1V)
            best_1K, rows_1K = self._rank(
                torch.cat([best_1K, exact_1V], dim=1), torch.cat([rows_1K, rows_1V], dim=1), k
            )
        return best_1K, rows_1K

    def _distances(self, queries: Tensor, rows: Tensor) -> Tensor:
        """Sums of squared differences, inf where there is no row. (Q, 1, Z2), (Q, V) -> (Q, V)."""
        differences_QVZ = self.keys[rows].double() - queries.double()
        return differences_QVZ.square().sum(dim=-1).float().masked_fill(rows < 0, torch.inf)

    def _rank(self, distances: Tensor, rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The first K by distance, then id. A stable sort keeps the order of the one before."""
        by_id = self._ids_of(rows).argsort(dim=1)
        distances, rows = distances.gather(1, by_id), rows.gather(1, by_id)
        nearest = distances.argsort(dim=1, stable=True)[:, :k]
        return distances.gather(1, nearest), rows.gather(1, nearest)

    def _ids_of(self, rows: Tensor) -> Tensor:
        return self.ids[rows].masked_fill(rows < 0, -1)


def check_queries(queries: Tensor, hidden: Tensor, k: int, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Refuse what no shard can search, and bring the rest to where the keys are, in float32.

    Raises:
        ValueError: ``k`` is below 1, a query is not finite, or its width is not that of the keys.
    """
    if k < 1:
        raise ValueError(f"gram.top_k must be at least 1, got {k}: ask for one neighbour.")
    if queries.ndim != 2 or queries.shape[1] != keys.shape[1]:
        raise ValueError(
            f"queries must be (Q, Z2) with Z2={keys.shape[1]}, got shape "
            f"{tuple(queries.shape)}: encode them as the shard's keys were."
        )
    if hidden.shape != (len(queries), 2):
        raise ValueError(
            f"each of {len(queries)} queries needs one hidden range, got shape "
            f"{tuple(hidden.shape)}."
        )
    check_finite("queries", queries)
    return queries.to(keys.device).float(), hidden.to(keys.device)


def tiles(length: int, size: int) -> list[slice]:
    """Cut [0, length) into slices of at most ``size``."""
    return [slice(first, min(first + size, length)) for first in range(0, length, size)]


def check_finite(name: str, values: Tensor) -> None:
    """Refuse NaN and inf.

    Raises:
        ValueError: There is one.
    """
    broken = (~values.isfinite()).any(dim=1).nonzero()[:, 0]
    if len(broken):
        raise ValueError(
            f"{name} must be finite, got {len(broken)} of {len(values)} rows with NaN or inf, the "
            f"first is row {int(broken[0])}: check the series and the encoder behind them."
        )
