"""model/memory.py: weights, gate and tokens in this order, and the forecast by retrieval."""

import dataclasses

import pytest
import torch
from torch import Tensor

from model.batch import RetrievedWindows
from model.config import GramConfig, ModelConfig
from model.memory import Memory, retrieved_forecast
from model.neighbour_weights import weigh_neighbours

CONFIG = ModelConfig(d_model=8, dropout=0.0)
R, P, D, E, H, L, K = 6, 5, 8, 32, 4, 24, 3


def make(**settings: object) -> Memory:
    torch.manual_seed(0)
    gram = dataclasses.replace(GramConfig(use_gram=True, d_repr=8), **settings)  # type: ignore[arg-type]
    return Memory(CONFIG, gram, L, H, E)


def retrieve(valid: Tensor | None = None, width: int = H) -> RetrievedWindows:
    rng = torch.Generator().manual_seed(1)
    valid = torch.ones(R, K, dtype=torch.bool) if valid is None else valid
    return RetrievedWindows(
        windows=torch.randn(R, K, L, generator=rng) * valid[..., None],
        futures=torch.randn(R, K, width, generator=rng) * valid[..., None],
        ids=torch.where(valid, torch.arange(R * K).view(R, K), -1),
        valid=valid,
    )


@pytest.mark.parametrize("key", ["dual", "anchored"])
def test_equals_its_parts_one_after_the_other(key: str):
    memory, retrieved = make(retrieval_key=key, temperature=0.7, gate_init=0.4), retrieve()
    patches, rows = torch.randn(R, P, D), torch.randn(R, L)
    knowledge, weights, tokens = memory(patches, rows, retrieved)
    _, expected = weigh_neighbours(memory.encoder, rows, retrieved, 0.7)
    gated = memory.gate(patches, retrieved.futures, expected, retrieved.valid)
    assert torch.equal(weights, expected)
    assert torch.equal(knowledge.features, gated.features)
    assert torch.equal(tokens, memory.tokens(gated.context, gated.match))
    assert tokens.shape == (R, 2, E)
    assert not torch.equal(knowledge.features, patches)


def test_weights_follow_the_encoder_as_it_is_now():
    memory, retrieved = make(), retrieve()
    rows = torch.randn(R, L)
    before = memory(torch.randn(R, P, D), rows, retrieved)[1]
    with torch.no_grad():
        for parameter in memory.encoder.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    after = memory(torch.randn(R, P, D), rows, retrieved)[1]
    assert not torch.allclose(before, after)


def test_a_row_without_neighbours_trusts_the_present_and_says_so():
    valid = torch.ones(R, K, dtype=torch.bool)
    valid[2], valid[3, 1:] = False, False
    memory = make(gate_init=0.5)
    knowledge, weights, tokens = memory(torch.randn(R, P, D), torch.randn(R, L), retrieve(valid))
    assert knowledge.gate[2] == 1
    assert knowledge.match[2] == 0
    assert not weights[2].any()
    assert weights[3].tolist() == [1, 0, 0]
    nothing = memory.tokens(torch.zeros(1, D), torch.zeros(1))
    torch.testing.assert_close(tokens[2:3], nothing)


def test_futures_of_another_horizon_are_resized():
    knowledge, _, _ = make()(torch.randn(R, P, D), torch.randn(R, L), retrieve(width=H + 3))
    assert knowledge.context.shape == (R, D)


def test_the_retrieved_forecast_is_the_weighted_mean_on_the_rows_level_and_scale():
    retrieved, rows = retrieve(), torch.randn(R, L) * 3 + 5
    weights = torch.rand(R, K).softmax(dim=1)
    scale = rows.std(dim=1, keepdim=True)
    got = retrieved_forecast(rows, scale, retrieved, weights)
    for row in range(R):
        expected = rows[row, -1] + scale[row] * sum(
            weights[row, k] * retrieved.futures[row, k] for k in range(K)
        )
        torch.testing.assert_close(got[row], expected)
    torch.testing.assert_close(
        retrieved_forecast(rows, scale, retrieved, torch.zeros(R, K)), rows[:, -1:].expand(-1, H)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("key", ["dual", "anchored"])
@pytest.mark.parametrize("found", [0, 1, K])
def test_constant_windows_and_neighbours_are_finite_forward_and_backward(
    found: int, key: str, dtype: torch.dtype
):
    memory = make(retrieval_key=key, gate_init=1.0).to(dtype)
    valid = (torch.arange(K) < found).expand(R, K)
    retrieved = retrieve(valid)._replace(
        windows=torch.full((R, K, L), 2.0), futures=torch.zeros(R, K, H)
    )
    patches = torch.zeros(R, P, D, dtype=dtype, requires_grad=True)
    knowledge, weights, tokens = memory(patches, torch.full((R, L), 2.0), retrieved)
    (knowledge.features.sum() + tokens.sum() + weights.square().sum()).backward()
    tensors = [*knowledge, weights, tokens]
    assert all(tensor.isfinite().all() for tensor in tensors)
    gradients = [p.grad for p in memory.parameters() if p.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)
