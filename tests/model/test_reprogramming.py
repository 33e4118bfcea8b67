"""model/reprogramming.py: prototypes and attention against their plain formulas."""

import math

import pytest
import torch
from torch import Tensor

from model.reprogramming import ReprogrammingLayer, TextPrototypes


def make(dropout: float = 0.0) -> ReprogrammingLayer:
    torch.manual_seed(0)
    return ReprogrammingLayer(d_model=6, n_heads=3, d_ff=5, d_llm=10, dropout=dropout).eval()


def attend_by_loop(layer: ReprogrammingLayer, patches: Tensor, prototypes: Tensor) -> Tensor:
    """Time-LLM's formula, one row and one head at a time. (R, P, D), (S, E) -> (R, P, E)."""
    rows = []
    for patch in patches:
        heads = []
        for head in range(layer.n_heads):
            mine = slice(5 * head, 5 * head + 5)
            q = layer.query(patch)[:, mine]
            k, v = layer.key(prototypes)[:, mine], layer.value(prototypes)[:, mine]
            heads.append(torch.softmax(q @ k.T / math.sqrt(5), dim=-1) @ v)
        rows.append(layer.out(torch.cat(heads, dim=-1)))
    return torch.stack(rows)


def test_prototypes_are_a_linear_map_of_the_vocabulary():
    layer = TextPrototypes(vocab_size=11, num_prototypes=4)
    words = torch.randn(11, 7)
    prototypes = layer(words)
    assert prototypes.shape == (4, 7)
    torch.testing.assert_close(
        prototypes, layer.mapping.weight @ words + layer.mapping.bias[:, None]
    )


def test_attention_matches_the_obvious_loop():
    layer, patches, prototypes = make(), torch.randn(4, 9, 6), torch.randn(8, 10)
    tokens = layer(patches, prototypes)
    assert tokens.shape == (4, 9, 10)
    torch.testing.assert_close(tokens, attend_by_loop(layer, patches, prototypes))


def test_key_width_of_a_head_is_d_ff():
    assert make().query.out_features == 3 * 5


def test_dropout_works_in_training_alone():
    layer, patches, prototypes = make(dropout=0.5), torch.randn(2, 3, 6), torch.randn(8, 10)
    still = layer(patches, prototypes)
    assert torch.equal(still, layer(patches, prototypes))
    assert not torch.allclose(still, layer.train()(patches, prototypes))


def test_refuses_another_vocabulary():
    with pytest.raises(ValueError, match=r"shape \(12, 7\): .*vocabulary of 11; pass"):
        TextPrototypes(11, 4)(torch.zeros(12, 7))


def test_refuses_the_wrong_rank():
    with pytest.raises(ValueError, match=r"\(3, 6\) and \(8, 10\): pass \(R, P, D\)"):
        make()(torch.zeros(3, 6), torch.zeros(8, 10))


def test_attention_sums_to_one_and_reproduces_the_forward_pass():
    layer, patches, prototypes = make(), torch.randn(4, 9, 6), torch.randn(8, 10)
    weights = layer.attention(patches, prototypes)
    assert weights.shape == (4, 3, 9, 8)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(4, 3, 9))
    values = layer.value(prototypes).view(8, 3, 5).transpose(0, 1)  # (G, S, W)
    attended = (weights @ values).transpose(1, 2).flatten(2)
    torch.testing.assert_close(layer.out(attended), layer(patches, prototypes))


def test_attention_keeps_no_gradient_and_ignores_dropout():
    layer, patches, prototypes = make(dropout=0.5), torch.randn(2, 3, 6), torch.randn(8, 10)
    still = layer.attention(patches, prototypes)
    assert not still.requires_grad
    assert torch.equal(still, layer.train().attention(patches, prototypes))
    half = layer.bfloat16().attention(patches.bfloat16(), prototypes.bfloat16())
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, still, atol=0.02, rtol=0.1)


def test_attention_refuses_the_wrong_rank():
    with pytest.raises(ValueError, match=r"\(3, 6\) and \(8, 10\): pass \(R, P, D\)"):
        make().attention(torch.zeros(3, 6), torch.zeros(8, 10))
