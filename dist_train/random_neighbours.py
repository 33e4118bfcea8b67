"""Neighbours drawn by lot from what a query may see: what is a search worth against chance?

Shape legend (this file):
    R  rows, one per (window, variate)     M  entries of the bank     K  top_k
    S  sources
"""

import numpy as np
import torch
from torch import Tensor


def draw_neighbours(entry_ids: Tensor, hidden: Tensor, k: int, queries: Tensor) -> Tensor:
    """Draw K different entries for each query, each visible one as likely as any other.

    The draw belongs to the query: it is the same in every epoch, on any number of ranks, and after
    a resume.

    Args:
        entry_ids: Ids of all entries, ascending. Shape (M,), int64.
        hidden: Ranges of ids that each query must not see, first <= id < end, one or several that
            ascend and share nothing. Shape (R, 2) or (R, S, 2), int64.
        k: Entries wanted.
        queries: Series, start and variate of each query. Shape (R, 3), int64.

    Returns:
        Ids, -1 where fewer than K are visible. Shape (R, K), int64, on the CPU.
    """
    drawn_RK = torch.full((len(hidden), k), -1, dtype=torch.int64)
    edges_RS2 = torch.searchsorted(entry_ids, hidden.reshape(len(hidden), -1, 2).contiguous())
    for row, query in enumerate(queries.tolist()):
        ranges = [(first, max(first, end)) for first, end in edges_RS2[row].tolist()]
        visible = len(entry_ids) - sum(end - first for first, end in ranges)
        # A window before the training data has a negative start, and a seed must not.
        generator = np.random.default_rng([number % 2**63 for number in query])
        places = generator.choice(visible, size=min(k, visible), replace=False)
        for first, end in ranges:
            places[places >= first] += end - first  # step over what is hidden
        drawn_RK[row, : len(places)] = entry_ids[torch.from_numpy(places)]
    return drawn_RK
