"""One ranking from the candidates of many shards.

Shape legend (this file):
    Q  queries     C  candidates per query, from all shards     K  neighbours wanted
"""

import torch
from torch import Tensor


def merge_neighbours(distances: Tensor, ids: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Keep the K nearest candidates of each query.

    Ties go to the smaller id, so the answer does not depend on which shard held an entry, nor on
    the order of the candidates.

    Args:
        distances: Squared distances, in any order. Shape (Q, C), float32.
        ids: Their ids, no id twice in a row, -1 where there is none. Shape (Q, C), int64.
        k: Neighbours wanted.

    Returns:
        ``(distances, ids)``, nearest first; inf and -1 where there are fewer. Shape (Q, K).
    """
    missing = k - ids.shape[1]
    if missing > 0:
        ids = torch.nn.functional.pad(ids, (0, missing), value=-1)
        distances = torch.nn.functional.pad(distances, (0, missing), value=torch.inf)
    distances = distances.masked_fill(ids < 0, torch.inf)
    # A stable sort by distance after a sort by id leaves equal distances in id order.
    by_id = ids.argsort(dim=1)
    distances, ids = distances.gather(1, by_id), ids.gather(1, by_id)
    nearest = distances.argsort(dim=1, stable=True)[:, :k]
    return distances.gather(1, nearest), ids.gather(1, nearest)
