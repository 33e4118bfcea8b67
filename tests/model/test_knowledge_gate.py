"""model/knowledge_gate.py: the residual, rows without neighbours, gradients, other horizons."""

import pytest
import torch
from torch import Tensor

from model.knowledge_gate import KnowledgeGate
from model.resize import resize_last_dim

D, H, P = 8, 6, 9


def make_inputs(rows: int, top_k: int, horizon: int = H) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Row 0 has no neighbour, the others have at least one."""
    generator = torch.Generator().manual_seed(rows + top_k)
    valid = torch.rand(rows, top_k, generator=generator) < 0.6
    valid[:, 0] = True
    valid[:1] = False
    weights = torch.rand(rows, top_k, generator=generator) * valid
    weights = weights / weights.sum(dim=1, keepdim=True).clamp_min(1e-9)
    patches = torch.randn(rows, P, D, generator=generator)
    futures = torch.randn(rows, top_k, horizon, generator=generator) * valid[..., None]
    return patches, futures, weights, valid


@pytest.mark.parametrize("top_k", range(1, 11))
def test_a_closed_gate_leaves_the_patches_bit_for_bit(top_k: int):
    patches, futures, weights, valid = make_inputs(4, top_k)
    found = KnowledgeGate(D, H)(patches, futures, weights, valid)
    assert torch.equal(found.features, patches)
    assert found.context.shape == (4, D)
    assert found.gate.shape == found.match.shape == (4,)


def test_an_open_gate_adds_the_gated_mixture_of_the_obvious_loop():
    gate = KnowledgeGate(D, H, gate_init=1.0)
    patches, futures, weights, valid = make_inputs(4, 3)
    found = gate(patches, futures, weights, valid)
    for row in range(1, 4):
        there = valid[row]
        items = gate.embed_future(futures[row, there])
        prior = weights[row, there].log()
        logits = gate.query(patches[row]) @ gate.key(items).T / D**0.5 + prior
        retrieved = logits.softmax(-1) @ gate.value(items)
        g = found.gate[row]
        expected = patches[row] + g * patches[row] + (1 - g) * retrieved
        torch.testing.assert_close(found.features[row], expected, rtol=1e-4, atol=1e-5)
        context = sum(w * item for w, item in zip(weights[row, there], items, strict=True))
        torch.testing.assert_close(found.context[row], context)


def test_a_row_without_neighbours_sees_only_the_present():
    gate = KnowledgeGate(D, H, gate_init=1.0)
    patches, futures, weights, valid = make_inputs(4, 3)
    found = gate(patches, futures, weights, valid)
    garbage = futures.masked_fill(~valid[..., None], torch.nan)
    again = gate(patches, garbage, weights, valid)
    assert torch.equal(found.features, again.features)
    torch.testing.assert_close(found.features[0], 2 * patches[0])
    assert (found.gate[0], found.match[0]) == (1, 0)
    assert not found.context[0].any()


def test_without_any_neighbour_everything_is_finite_and_every_branch_still_runs():
    gate = KnowledgeGate(D, H, gate_init=1.0)
    patches, futures, weights, valid = make_inputs(3, 2)
    nothing = torch.zeros_like(valid)
    found = gate(patches, futures, weights * nothing, nothing)
    (found.features.sum() + found.context.sum() + found.match.sum() + found.gate.sum()).backward()
    torch.testing.assert_close(found.features, 2 * patches)
    missing = [name for name, p in gate.named_parameters() if p.grad is None]
    assert not missing, "a branch was not executed"
    assert all(p.grad is not None and p.grad.isfinite().all() for p in gate.parameters())


def test_every_parameter_gets_a_gradient_and_so_do_the_weights():
    gate = KnowledgeGate(D, H, gate_init=0.5)
    patches, futures, weights, valid = make_inputs(6, 4)
    weights.requires_grad_()
    found = gate(patches, futures, weights, valid)
    found.features.square().sum().backward()
    assert not [n for n, p in gate.named_parameters() if p.grad is None or not p.grad.any()]
    assert weights.grad is not None
    assert weights.grad[valid].all()
    assert weights.grad.isfinite().all()


def test_the_closed_residual_gate_itself_gets_a_gradient():
    gate = KnowledgeGate(D, H)
    gate(*make_inputs(6, 4)).features.square().sum().backward()
    assert gate.residual_gate.grad is not None
    assert gate.residual_gate.grad != 0


def test_the_gate_and_the_match_lie_strictly_between_zero_and_one():
    found = KnowledgeGate(D, H)(*make_inputs(6, 4))
    for score in (found.gate[1:], found.match[1:]):
        assert ((score > 0) & (score < 1)).all()


@pytest.mark.parametrize("horizon", [1, 3, 12])
def test_futures_of_another_horizon_are_resized(horizon: int):
    gate = KnowledgeGate(D, H, gate_init=1.0)
    patches, futures, weights, valid = make_inputs(4, 3, horizon)
    found = gate(patches, futures, weights, valid)
    again = gate(patches, resize_last_dim(futures, H), weights, valid)
    assert torch.equal(found.features, again.features)


def test_the_order_of_the_neighbours_does_not_matter():
    gate = KnowledgeGate(D, H, gate_init=1.0)
    patches, futures, weights, valid = make_inputs(4, 3)
    found = gate(patches, futures, weights, valid)
    turned = gate(patches, futures.flip(1), weights.flip(1), valid.flip(1))
    torch.testing.assert_close(found.features, turned.features)


def test_training_and_evaluation_agree_without_dropout():
    gate, inputs = KnowledgeGate(D, H, gate_init=1.0), make_inputs(4, 3)
    assert torch.equal(gate.train()(*inputs).features, gate.eval()(*inputs).features)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_finite(dtype: torch.dtype):
    gate = KnowledgeGate(D, H, gate_init=1.0).to(dtype)
    patches, futures, weights, valid = make_inputs(4, 3)
    found = gate(patches.to(dtype), futures, weights, valid)
    assert found.features.dtype == dtype
    assert found.features.isfinite().all()
    assert found.gate.dtype == found.match.dtype == torch.float32


def test_refuses_shapes_that_do_not_fit():
    patches, futures, weights, valid = make_inputs(4, 3)
    with pytest.raises(ValueError, match=r"got shapes \(4, 9, 8\), \(4, 3, 6\), \(4, 2\) and"):
        KnowledgeGate(D, H)(patches, futures, weights[:, :2], valid)
