"""model/patching.py: the cut itself, the two embeddings, and what it refuses."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from model.config import ModelConfig, num_patches
from model.patching import PatchEmbedding

CUTS = [
    pytest.param(512, {"patch_len": 16, "stride": 8}, 63, id="paper"),
    pytest.param(96, {"patch_len": 16, "stride": 16}, 6, id="no-overlap"),
    pytest.param(37, {"patch_len": 12, "stride": 5}, 6, id="divides"),
    pytest.param(38, {"patch_len": 12, "stride": 5}, 7, id="does-not-divide"),
    pytest.param(16, {"patch_len": 16, "stride": 8}, 1, id="one-patch-long"),
]


def make(**settings: object) -> PatchEmbedding:
    torch.manual_seed(0)
    return PatchEmbedding(ModelConfig(d_model=8, dropout=0.0, **settings))


def cut_by_loop(rows: Tensor, patch_len: int, stride: int) -> Tensor:
    """The slow, obvious cut, from the newest step backwards. (R, L) -> (R, P, S)."""
    patches, end = [], rows.shape[1]
    while True:
        start = end - patch_len
        inside = rows[:, max(start, 0) : end]
        oldest = rows[:, :1].repeat(1, max(-start, 0))
        patches.insert(0, torch.cat([oldest, inside], dim=1))
        if start <= 0:
            return torch.stack(patches, dim=1)
        end -= stride


@pytest.mark.parametrize(("seq_len", "cut", "expected"), CUTS)
@pytest.mark.parametrize("kind", ["conv", "linear"])
def test_matches_the_obvious_loop(seq_len: int, cut: dict[str, int], expected: int, kind: str):
    layer = make(patch_embedding=kind, **cut)
    rows = torch.randn(3, seq_len, generator=torch.Generator().manual_seed(0))
    patches = cut_by_loop(rows, **cut)

    if kind == "linear":
        wanted = patches @ layer.project.weight.T
    else:  # width 3 over the patches, which form a ring
        taps = layer.project.weight  # (D, S, 3)
        shifted = [patches.roll(1, 1), patches, patches.roll(-1, 1)]
        wanted = sum(patch @ taps[:, :, i].T for i, patch in enumerate(shifted))

    embedded = layer(rows)
    assert embedded.shape == (3, expected, 8)
    torch.testing.assert_close(embedded, wanted)


@given(patch_len=st.integers(1, 20), data=st.data())
def test_the_cut_is_right_for_any_sizes(patch_len: int, data: st.DataObject):
    stride = data.draw(st.integers(1, patch_len))
    seq_len = data.draw(st.integers(patch_len, 80))
    rows = torch.arange(seq_len * 2.0).view(2, seq_len)
    patches = make(patch_len=patch_len, stride=stride).cut(rows)
    assert patches.shape == (2, num_patches(seq_len, patch_len, stride), patch_len)
    assert torch.equal(patches, cut_by_loop(rows, patch_len, stride))
    assert torch.equal(patches[:, -1, -1], rows[:, -1])  # the newest step is covered


@pytest.mark.parametrize(("seq_len", "cut", "expected"), CUTS)
def test_bounds_say_which_steps_a_patch_holds(seq_len: int, cut: dict[str, int], expected: int):
    patching, steps = make(**cut), torch.arange(seq_len * 1.0)[None]
    bounds = patching.bounds(seq_len)
    assert len(bounds) == expected
    for (begin, end), patch in zip(bounds, patching.cut(steps)[0], strict=True):
        assert patch.unique().tolist() == list(range(begin, end))


@pytest.mark.parametrize(("seq_len", "cut", "expected"), CUTS)
@pytest.mark.parametrize("kind", ["conv", "linear"])
def test_every_time_step_reaches_the_output(
    seq_len: int, cut: dict[str, int], expected: int, kind: str
):
    rows = torch.randn(1, seq_len, requires_grad=True)
    make(patch_embedding=kind, **cut)(rows).square().sum().backward()
    assert rows.grad is not None
    assert (rows.grad != 0).all(), "a time step is in no patch"


def test_rows_do_not_mix():
    rows = torch.randn(2, 64)
    changed = rows.clone()
    changed[1] += 1.0
    torch.testing.assert_close(make()(rows)[0], make()(changed)[0], rtol=0, atol=0)


def test_dropout_works_in_training_alone():
    layer = PatchEmbedding(ModelConfig(dropout=0.5))
    rows = torch.randn(2, 64)
    assert ((layer.train()(rows) == 0).float().mean() - 0.5).abs() < 0.1
    assert (layer.eval()(rows) != 0).all()


def test_refuses_a_window_shorter_than_a_patch():
    with pytest.raises(ValueError, match=r"seq_len=8 .*patch_len=16"):
        make()(torch.zeros(1, 8))


def test_refuses_the_wrong_rank():
    with pytest.raises(ValueError, match=r"rows has shape \(1, 64, 1\): pass .*\(R, L\)"):
        make()(torch.zeros(1, 64, 1))
