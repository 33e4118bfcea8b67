"""model/decomposition.py: pooling, split, residual gate, gradients, and its refusal."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.decomposition import MultiScaleDecomposition, pool_patches, split_trend


def pool_by_loop(patches: Tensor, factor: int) -> Tensor:
    runs = [patches[:, i : i + factor].mean(dim=1) for i in range(0, patches.shape[1], factor)]
    return torch.stack(runs, dim=1)


@settings(deadline=None)
@given(num_patches=st.integers(1, 70), factor=st.sampled_from([1, 4, 16, 64, 256]))
def test_pooling_equals_the_obvious_loop(num_patches: int, factor: int):
    patches = torch.randn(2, num_patches, 3)
    torch.testing.assert_close(pool_patches(patches, factor), pool_by_loop(patches, factor))


def test_the_trend_is_the_mean_of_five_cells_and_the_season_the_rest():
    cells = torch.randn(1, 9, 1)
    trend, season = split_trend(cells)
    values = cells.flatten().tolist()
    for i in range(9):
        around = [values[min(max(j, 0), 8)] for j in range(i - 2, i + 3)]
        assert trend[0, i, 0].item() == pytest.approx(sum(around) / 5, abs=1e-6)
    torch.testing.assert_close(trend + season, cells)


@pytest.mark.parametrize("n_scales", [2, 3, 4, 5])
@pytest.mark.parametrize("num_patches", [1, 3, 17, 63])
def test_every_number_of_scales_works_for_any_number_of_patches(n_scales: int, num_patches: int):
    layer = MultiScaleDecomposition(8, n_scales)
    patches = torch.randn(2, num_patches, 8)
    found = layer(patches)
    assert found.features.shape == found.fused.shape == found.trend.shape == patches.shape
    assert [trend.shape for trend in found.scale_trends] == [patches.shape] * n_scales
    assert all(part.isfinite().all() for part in (found.fused, found.trend, *found.scale_trends))
    torch.testing.assert_close(found.trend, torch.stack(found.scale_trends).mean(0))


def test_a_closed_gate_leaves_the_patches_bit_for_bit():
    patches = torch.randn(3, 63, 8)
    assert torch.equal(MultiScaleDecomposition(8, 3)(patches).features, patches)


def test_an_open_gate_adds_the_fused_scales():
    found = MultiScaleDecomposition(8, 3, gate_init=1.0)(patches := torch.randn(3, 63, 8))
    torch.testing.assert_close(found.features, patches + found.fused, rtol=0, atol=0)


@pytest.mark.parametrize("n_scales", [2, 3, 5])
def test_every_parameter_gets_a_gradient(n_scales: int):
    layer = MultiScaleDecomposition(8, n_scales, gate_init=0.5)
    found = layer(torch.randn(4, 63, 8))
    (found.features.square().mean() + found.trend.square().mean()).backward()
    missing = [n for n, p in layer.named_parameters() if p.grad is None or not p.grad.any()]
    assert not missing


def test_the_closed_gate_itself_gets_a_gradient():
    layer = MultiScaleDecomposition(8, 3)
    layer(torch.randn(4, 63, 8)).features.square().mean().backward()
    assert layer.residual_gate.grad is not None
    assert layer.residual_gate.grad != 0


def test_every_patch_reaches_the_fused_scales_and_the_trend():
    patches = torch.randn(1, 17, 8, requires_grad=True)
    layer = MultiScaleDecomposition(8, 3)
    for part in ("fused", "trend"):
        grad = torch.autograd.grad(getattr(layer(patches), part).square().sum(), patches)[0]
        assert grad.abs().sum(dim=-1).min() > 0


def test_the_coarsest_scale_reaches_the_finest_through_attention():
    layer = MultiScaleDecomposition(8, 3, gate_init=1.0)
    with torch.no_grad():
        layer.scale_logits.copy_(torch.tensor([50.0, -50.0, -50.0]))  # the finest scale alone
    patches = torch.randn(2, 20, 8)
    before = layer(patches).fused
    with torch.no_grad():
        layer.scales[2].mix.bias += torch.randn(8)
    assert (layer(patches).fused != before).all()


def test_rows_do_not_mix():
    layer = MultiScaleDecomposition(8, 3, gate_init=1.0)
    patches = torch.randn(2, 20, 8)
    changed = patches.clone()
    changed[1] += 1
    torch.testing.assert_close(layer(patches).features[0], layer(changed).features[0])


def test_training_and_evaluation_agree_without_dropout():
    layer = MultiScaleDecomposition(8, 3, gate_init=1.0)
    patches = torch.randn(2, 20, 8)
    trained = layer.train()(patches).features
    assert torch.equal(trained, layer.eval()(patches).features)


def test_constant_patches_and_bfloat16_are_finite():
    layer = MultiScaleDecomposition(8, 3, gate_init=1.0).bfloat16()
    found = layer(torch.full((2, 63, 8), 300.0, dtype=torch.bfloat16))
    assert found.features.dtype == torch.bfloat16
    assert found.features.isfinite().all()


def test_refuses_the_wrong_rank():
    with pytest.raises(ValueError, match=r"\(R, P, D\), got shape \(63, 8\)"):
        MultiScaleDecomposition(8, 3)(torch.zeros(63, 8))
