"""Rows for the tests of the linear anchor and of its closed form.

Shape legend (this file):
    R  rows     L  seq_len     H  pred_len
"""

import torch
from torch import Tensor

from model.linear_anchor import Norm

L, H = 12, 5


def random_walks(num_rows: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    steps = torch.randn(num_rows, L + H, generator=torch.Generator().manual_seed(seed))
    walks = steps.cumsum(dim=1) + 3
    return walks[:, :L], walks[:, L:]


def centre(x: Tensor, norm: Norm) -> Tensor:
    return x[:, -1:] if norm == "last" else x.mean(dim=1, keepdim=True)


def phases(size: int, seed: int = 5) -> Tensor:
    angles = 6.3 * torch.rand(size, 2, generator=torch.Generator().manual_seed(seed))
    return torch.stack([angles.cos(), angles.sin()], dim=2).flatten(1)
