"""Attention of many short rows, as many at a time as a GPU's kernels take."""

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_ROWS = 65_535
"""Rows of one call: a launch has no more blocks along that side of its grid, and torch does not
divide them (pytorch/pytorch issues 142228 and 146704)."""


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attend within each row.

    Args:
        query: Shape (R, G, T, W): rows, heads, tokens, width of a head.
        key: As ``query``.
        value: As ``query``.
        mask: True where a token is seen, R of them. Broadcasts to (R, G, T, T); None: all are.

    Returns:
        Shape (R, G, T, W).
    """
    queries, keys, values = (torch.split(part, MAX_ROWS) for part in (query, key, value))
    masks = [None] * len(queries) if mask is None else torch.split(mask, MAX_ROWS)
    attended = [
        F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        for q, k, v, seen in zip(queries, keys, values, masks, strict=True)
    ]
    return attended[0] if len(attended) == 1 else torch.cat(attended)
