"""Exact nearest neighbours by brute force: the reference, and the GPU path for small banks.

Shape legend (this file):
    Q  queries     M  entries of the shard     Z2  width of a key
    K  neighbours wanted     C  candidates kept per query, K plus a margin     V  pairs to verify
"""

import torch
from torch import Tensor

from memory_index.exclusion import Exclusion

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

    def __init__(self, keys: Tensor, ids: Tensor, series: Tensor, starts: Tensor) -> None:
        """Hold the shard.

        Args:
            keys: Keys of the entries. Shape (M, Z2), float32; its device is the search's.
            ids: Their ids, none negative, none twice. Shape (M,), int64.
            series: Index of the series of each. Shape (M,), int64.
            starts: First row of each entry's window. Shape (M,), int64.

        Raises:
            ValueError: The shapes do not fit, a key is not finite, or an id is negative.
        """
        if keys.ndim != 2 or any(part.shape != keys.shape[:1] for part in (ids, series, starts)):
            raise ValueError(
                "a shard needs keys (M, Z2), ids, series and starts (M,), got shapes "
                f"{tuple(keys.shape)}, {tuple(ids.shape)}, {tuple(series.shape)} and "
                f"{tuple(starts.shape)}."
            )
        _check_finite("keys", keys)
        if (ids < 0).any():
            raise ValueError(f"ids must not be negative, got {int(ids.min())}: -1 means none.")
        self.keys = keys.float()
        self.ids, self.series, self.starts = (
            part.to(keys.device) for part in (ids, series, starts)
        )
        self._norms_M = self.keys.double().square().sum(dim=1)

    def __len__(self) -> int:
        return len(self.keys)

    @torch.no_grad()
    def search(
        self,
        queries: Tensor,
        query_series: Tensor,
        query_starts: Tensor,
        k: int,
        exclusion: Exclusion,
    ) -> tuple[Tensor, Tensor]:
        """Find the K nearest entries that each query may see. Not collective.

        Args:
            queries: Keys of the queries. Shape (Q, Z2), floating point.
            query_series: Index of each query's series. Shape (Q,), int64.
            query_starts: First row of each query's window. Shape (Q,), int64.
            k: Neighbours wanted, at least 1.
            exclusion: What the queries must not see.

        Returns:
            ``(distances, ids)``: squared Euclidean distances, nearest first, equal ones by
            ascending id; inf and -1 where fewer than K are visible. Shape (Q, K), float32 and
            int64.

        Raises:
            ValueError: ``k`` is below 1, a query is not finite, or its width is not Z2.
        """
        if k < 1:
            raise ValueError(f"gram.top_k must be at least 1, got {k}: ask for one neighbour.")
        if queries.ndim != 2 or queries.shape[1] != self.keys.shape[1]:
            raise ValueError(
                f"queries must be (Q, Z2) with Z2={self.keys.shape[1]}, got shape "
                f"{tuple(queries.shape)}: encode them as the shard's keys were."
            )
        _check_finite("queries", queries)
        device = self.keys.device
        queries = queries.to(device).float()
        series, starts = query_series.to(device), query_starts.to(device)
        if not len(self):
            nothing = queries.new_full((len(queries), k), torch.inf)
            return nothing, torch.full_like(nothing, _NOWHERE, dtype=torch.int64)
        tiles = [
            self._search_tile(queries[tile], series[tile], starts[tile], k, exclusion)
            for tile in _tiles(len(queries), QUERY_TILE)
        ]
        empty = (queries.new_empty(0, k), self.ids.new_empty(0, k))
        distances, ids = zip(*[empty, *tiles], strict=True)
        return torch.cat(distances), torch.cat(ids)

    def _search_tile(
        self, queries: Tensor, series: Tensor, starts: Tensor, k: int, exclusion: Exclusion
    ) -> tuple[Tensor, Tensor]:
        approximate_QC, rows_QC = self._propose(queries, series, starts, k + MARGIN, exclusion)
        exact_QC = self._distances(queries[:, None], rows_QC)
        distances_QK, rows_QK = self._rank(exact_QC, rows_QC, k)

        reach_Q = self._reach(queries, distances_QK[:, -1])
        # An inf among the candidates says that every visible entry is one of them.
        crowded = (approximate_QC[:, -1] <= reach_Q) & approximate_QC[:, -1].isfinite()
        for query in crowded.nonzero()[:, 0].tolist():
            one = slice(query, query + 1)
            distances_QK[one], rows_QK[one] = self._scan(
                queries[one], series[one], starts[one], k, exclusion, reach_Q[one]
            )
        return distances_QK, self._ids_of(rows_QK)

    def _propose(
        self, queries: Tensor, series: Tensor, starts: Tensor, count: int, exclusion: Exclusion
    ) -> tuple[Tensor, Tensor]:
        """Nearest ``count`` by matrix product, streamed over tiles. (Q, C) float64 and rows."""
        best_QC = queries.new_full((len(queries), count), torch.inf, dtype=torch.float64)
        rows_QC = torch.full_like(best_QC, _NOWHERE, dtype=torch.int64)
        for tile in _tiles(len(self), ENTRY_TILE):
            scores_QM = self._scores(queries, series, starts, tile, exclusion)
            found_QC, columns_QC = scores_QM.topk(min(count, scores_QM.shape[1]), largest=False)
            both = torch.cat([best_QC, found_QC], dim=1)
            both_rows = torch.cat([rows_QC, columns_QC + tile.start], dim=1)
            best_QC, kept = both.topk(count, largest=False, sorted=True)
            rows_QC = both_rows.gather(1, kept)
        return best_QC, rows_QC.masked_fill(best_QC.isinf(), _NOWHERE)

    def _scores(
        self, queries: Tensor, series: Tensor, starts: Tensor, tile: slice, exclusion: Exclusion
    ) -> Tensor:
        """Squared distances up to rounding, inf where hidden. (Q, tile), float64."""
        queries_QZ = queries.double()
        # TF32 and float32 would round away the order of near neighbours.
        products_QM = queries_QZ @ self.keys[tile].double().T
        norms_Q1 = queries_QZ.square().sum(dim=1, keepdim=True)
        scores_QM = norms_Q1 + self._norms_M[tile] - 2 * products_QM
        visible_QM = exclusion.visible(series, starts, self.series[tile], self.starts[tile])
        return scores_QM.masked_fill_(~visible_QM, torch.inf)

    def _reach(self, queries: Tensor, farthest: Tensor) -> Tensor:
        """Score above which no entry can be among the K nearest: the K-th plus both roundings."""
        width = self.keys.shape[1] + 8
        norms_Q = queries.double().square().sum(dim=1) + self._norms_M.amax()
        product_error_Q = width * torch.finfo(torch.float64).eps * 4 * norms_Q
        return farthest.double() * (1 + 2 * torch.finfo(torch.float32).eps) + product_error_Q

    def _scan(
        self,
        query: Tensor,
        series: Tensor,
        starts: Tensor,
        k: int,
        exclusion: Exclusion,
        reach: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Rank every entry within reach of one query. (1, K) distances and rows."""
        best_1K = query.new_full((1, k), torch.inf)
        rows_1K = torch.full_like(best_1K, _NOWHERE, dtype=torch.int64)
        for tile in _tiles(len(self), ENTRY_TILE):
            scores_1M = self._scores(query, series, starts, tile, exclusion)
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


def _tiles(length: int, size: int) -> list[slice]:
    return [slice(first, min(first + size, length)) for first in range(0, length, size)]


def _check_finite(name: str, values: Tensor) -> None:
    broken = (~values.isfinite()).any(dim=1).nonzero()[:, 0]
    if len(broken):
        raise ValueError(
            f"{name} must be finite, got {len(broken)} of {len(values)} rows with NaN or inf, the "
            f"first is row {int(broken[0])}: check the series and the encoder behind them."
        )
