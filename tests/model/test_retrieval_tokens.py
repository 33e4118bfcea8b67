"""model/retrieval_tokens.py: what the two tokens say, gradients, and the refusal."""

import pytest
import torch

from model.retrieval_tokens import RetrievalTokens


def test_the_first_token_is_the_projected_context_and_the_second_the_confidence():
    layer = RetrievalTokens(8, 24)
    context, match = torch.randn(5, 8), torch.rand(5)
    tokens = layer(context, match)
    assert tokens.shape == (5, 2, 24)
    torch.testing.assert_close(tokens[:, 0], layer.context(context))
    low, high = layer(context, torch.zeros(5))[:, 1], layer(context, torch.ones(5))[:, 1]
    torch.testing.assert_close(tokens[:, 1], torch.lerp(low, high, match[:, None]))


def test_rows_without_a_neighbour_share_two_constant_tokens():
    tokens = RetrievalTokens(8, 24)(torch.zeros(3, 8), torch.zeros(3))
    assert torch.equal(tokens, tokens[:1].expand(3, -1, -1))


def test_every_parameter_gets_a_gradient():
    layer = RetrievalTokens(8, 24)
    layer(torch.randn(5, 8), torch.rand(5)).square().sum().backward()
    assert not [n for n, p in layer.named_parameters() if p.grad is None or not p.grad.any()]


def test_a_float32_match_meets_a_bfloat16_layer():
    tokens = RetrievalTokens(8, 24).bfloat16()(torch.randn(5, 8), torch.rand(5))
    assert tokens.dtype == torch.bfloat16


def test_refuses_a_match_per_neighbour():
    with pytest.raises(ValueError, match=r"got shapes \(5, 8\) and \(5, 3\)"):
        RetrievalTokens(8, 24)(torch.zeros(5, 8), torch.zeros(5, 3))
