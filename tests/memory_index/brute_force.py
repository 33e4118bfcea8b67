"""The slow search that every other one is compared with."""

import torch
from torch import Tensor


def nearest_by_loop(
    keys: Tensor, ids: Tensor, queries: Tensor, hidden: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """Measure every query against every entry it may see; sort by (distance, id). (Q, K) each."""
    distances, found = [], []
    for query, (first, end) in zip(queries.double(), hidden.tolist(), strict=True):
        measured = (keys.double() - query).square().sum(dim=1).float().tolist()
        pairs = zip(measured, ids.tolist(), strict=True)
        best = sorted(pair for pair in pairs if not first <= pair[1] < end)[:k]
        best += [(torch.inf, -1)] * (k - len(best))
        distances.append([distance for distance, _ in best])
        found.append([name for _, name in best])
    shape = (len(queries), k)
    return (
        torch.tensor(distances, dtype=torch.float32).reshape(shape),
        torch.tensor(found, dtype=torch.int64).reshape(shape),
    )


def recall(found: Tensor, truth: Tensor) -> float:
    """Share of the true neighbours that are among those found. (Q, K) each."""
    there = truth >= 0
    hits = (truth[:, :, None] == found[:, None]).any(dim=2) & there
    return float(hits.sum() / there.sum())


def same(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> None:
    """Fail unless distances and ids are equal, bit for bit."""
    assert one[1].tolist() == other[1].tolist()
    assert one[0].tolist() == other[0].tolist()
