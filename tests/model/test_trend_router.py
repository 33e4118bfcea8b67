"""model/trend_router.py: TAPR's four parts, wired as SPEC 1.1 says."""

import dataclasses

import pytest
import torch

from model.config import ModelConfig, TaprConfig
from model.decomposition import MultiScaleDecomposition
from model.trend_router import TrendRouter

CONFIG = ModelConfig(d_model=8, dropout=0.0)
R, P, D, E, H = 5, 11, 8, 32, 6


def make(**settings: object) -> TrendRouter:
    torch.manual_seed(0)
    tapr = dataclasses.replace(TaprConfig(), **settings)  # type: ignore[arg-type]
    return TrendRouter(CONFIG, tapr, H, E)


def test_equals_its_parts_one_after_the_other():
    router, patches = make(gate_init=0.7), torch.randn(R, P, D)
    features, prediction, token = router(patches)
    decomposition = router.decomposition(patches)
    expected, expected_token = router.head(decomposition.trend)
    assert torch.equal(features, decomposition.features)
    assert torch.equal(token, expected_token)
    for got, wanted in zip(prediction, expected, strict=True):
        assert torch.equal(got, wanted)
    assert token.shape == (R, 1, E)


def test_the_head_reads_the_trend_and_not_the_patches():
    router, patches = make(), torch.randn(R, P, D)
    _, before, _ = router(patches)
    with torch.no_grad():
        router.decomposition.scale_logits += torch.tensor([0.0, 1.0, 3.0])
    features, after, _ = router(patches)
    assert torch.equal(features, patches)  # the gate is still closed
    assert not torch.allclose(before.magnitude, after.magnitude)


def test_the_settings_reach_the_parts():
    router = make(
        n_scales=4, gate_init=0.5, lambda_reg=0.0, trend_fusion="never",
        trend_thresholds=[-2.0, -1.0, 1.0, 2.0],
    )  # fmt: skip
    assert isinstance(router.decomposition, MultiScaleDecomposition)
    assert router.decomposition.residual_gate.tolist() == [0.5]
    assert len(router.decomposition.factors) == 4
    assert router.head.change is None
    assert not list(router.fusion.parameters())
    assert router.thresholds.values.tolist() == [-2, -1, 1, 2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n_scales", [2, 3, 4, 5])
def test_constant_patches_are_finite_forward_and_backward(n_scales: int, dtype: torch.dtype):
    router = make(n_scales=n_scales, gate_init=1.0).to(dtype)
    patches = torch.full((R, P, D), 2.0, dtype=dtype, requires_grad=True)
    features, prediction, token = router(patches)
    fused = router.fusion(torch.zeros(R, H), prediction)
    (features.sum() + token.sum() + fused.sum() + prediction.direction.sum()).backward()
    tensors = [features, token, fused, *prediction]
    assert all(tensor.isfinite().all() for tensor in tensors)
    assert patches.grad is not None
    assert patches.grad.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in router.parameters())
