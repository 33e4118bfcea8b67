"""model/float32_buffers.py: a cast reaches parameters and leaves buffers alone."""

import torch
from torch import nn

from model.float32_buffers import KeepsBufferPrecision


class Child(KeepsBufferPrecision):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.inner = nn.BatchNorm1d(2)
        self.register_buffer("third", torch.tensor(1 / 3))
        self.register_buffer("flag", torch.tensor(True))
        self.register_buffer("absent", None)


def test_casts_of_a_parent_keep_the_values_of_the_buffers():
    parent = nn.Sequential(Child(), nn.BatchNorm1d(2))
    child = parent[0]
    for cast in (parent.bfloat16, parent.half, parent.double, parent.float):
        cast()
        assert child.third.dtype == child.inner.running_mean.dtype == torch.float32
        assert child.third.item() == torch.tensor(1 / 3).item()
        assert child.flag.dtype == torch.bool
    parent.to(torch.bfloat16)
    assert child.linear.weight.dtype == parent[1].running_mean.dtype == torch.bfloat16


def test_moves_reach_the_buffers():
    child = Child().to("meta", torch.bfloat16)
    assert child.third.is_meta
    assert child.third.dtype == torch.float32
