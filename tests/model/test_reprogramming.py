"""model/reprogramming.py: prototypes and attention against their plain formulas."""

import math

import pytest
import torch
from torch import Tensor, nn

from model.reprogramming import ReprogrammingLayer, TextPrototypes, word_basis


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


def test_the_factored_map_reaches_the_same_prototypes_with_the_same_gradient():
    words = torch.randn(50, 7, dtype=torch.float64)
    basis = word_basis(words).double()
    orthonormal = words @ torch.linalg.inv(basis)
    torch.testing.assert_close(
        orthonormal.T @ orthonormal, torch.eye(7, dtype=torch.float64), atol=1e-5, rtol=0
    )
    by_word, factored = TextPrototypes(50, 4).double(), TextPrototypes(50, 4, width=7).double()
    factored.mapping.weight.data = by_word.mapping.weight.data @ orthonormal
    factored.mapping.bias.data = by_word.mapping.bias.data
    weights = torch.randn(4, 7, dtype=torch.float64)
    for layer, given in ((by_word, words), (factored, basis)):
        (layer(given) * weights).sum().backward()
    torch.testing.assert_close(factored(basis), by_word(words), atol=1e-5, rtol=1e-5)
    assert by_word.mapping.weight.grad is not None
    torch.testing.assert_close(
        factored.mapping.weight.grad,
        by_word.mapping.weight.grad @ orthonormal,
        atol=1e-5,
        rtol=1e-5,
    )
    # Whatever prototypes there are, some set of numbers per direction makes them.
    wanted = torch.randn(4, 7, dtype=torch.float64)
    torch.testing.assert_close(
        wanted @ torch.linalg.inv(basis) @ basis, wanted, atol=1e-4, rtol=1e-4
    )


def test_both_maps_start_with_prototypes_of_one_spread():
    words = torch.randn(5000, 16)
    torch.manual_seed(0)
    one = TextPrototypes(5000, 400)(words).detach()
    other = TextPrototypes(5000, 400, width=16)(word_basis(words)).detach()
    assert other.std() == pytest.approx(float(one.std()), rel=0.05)
    published = nn.Linear(5000, 400)(words.T).detach()
    assert one.std() == pytest.approx(float(published.std()), rel=0.05)


def test_the_basis_does_not_need_more_words_than_directions():
    words = torch.randn(3, 7)
    basis = word_basis(words)
    assert basis.shape == (7, 7)
    assert torch.linalg.matrix_rank(basis, rtol=1e-4) == 3
    torch.testing.assert_close(basis @ basis, words.T @ words, atol=1e-4, rtol=1e-4)


def test_refuses_a_basis_of_another_width():
    with pytest.raises(ValueError, match=r"shape \(9, 9\): .*basis of width 7; pass"):
        TextPrototypes(50, 4, width=7)(torch.zeros(9, 9))


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
