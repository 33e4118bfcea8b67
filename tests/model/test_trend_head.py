"""model/trend_head.py: three levels, the token, gradients, and its refusal."""

import pytest
import torch

from model.trend_head import TrendHead


def test_gives_logits_of_both_levels_a_change_and_one_token():
    prediction, token = TrendHead(8, 24, builds_change=True)(torch.randn(5, 63, 8))
    assert prediction.direction.shape == (5, 3)
    assert prediction.magnitude.shape == (5, 4)
    assert prediction.change is not None
    assert prediction.change.shape == (5,)
    assert token.shape == (5, 1, 24)


def test_builds_no_regression_where_none_is_asked_for():
    head = TrendHead(8, 24, builds_change=False)
    assert head(torch.randn(5, 63, 8))[0].change is None
    assert not [name for name, _ in head.named_parameters() if name.startswith("change")]


def test_the_token_is_the_projected_expected_class_embedding():
    head = TrendHead(8, 24, builds_change=False)
    prediction, token = head(torch.randn(2, 5, 8))
    for row in range(2):
        probabilities = prediction.magnitude[row].softmax(0)
        expected = sum(p * e for p, e in zip(probabilities, head.class_embeddings, strict=True))
        torch.testing.assert_close(token[row, 0], head.to_token(expected))


def test_the_change_depends_on_the_predicted_classes():
    head = TrendHead(8, 24, builds_change=True)
    trend = torch.randn(2, 5, 8)
    before = head(trend)[0].change
    with torch.no_grad():
        head.magnitude.bias += torch.tensor([5.0, 0.0, 0.0, -5.0])
    after = head(trend)[0].change
    assert before is not None
    assert after is not None
    assert (before != after).all()


@pytest.mark.parametrize("builds_change", [True, False])
def test_every_parameter_gets_a_gradient(builds_change: bool):
    head = TrendHead(8, 24, builds_change=builds_change)
    prediction, token = head(torch.randn(6, 9, 8))
    loss = prediction.direction.square().mean() + prediction.magnitude.square().mean()
    loss = loss + token.square().mean()
    if prediction.change is not None:
        loss = loss + prediction.change.square().mean()
    loss.backward()
    assert not [n for n, p in head.named_parameters() if p.grad is None or not p.grad.any()]


def test_training_and_evaluation_agree_without_dropout():
    head, trend = TrendHead(8, 24, builds_change=True), torch.randn(2, 5, 8)
    assert torch.equal(head.train()(trend)[1], head.eval()(trend)[1])


def test_bfloat16_gives_float32_logits_and_a_bfloat16_token():
    head = TrendHead(8, 24, builds_change=True).bfloat16()
    prediction, token = head(torch.randn(2, 5, 8, dtype=torch.bfloat16))
    assert prediction.direction.dtype == prediction.magnitude.dtype == torch.float32
    assert token.dtype == torch.bfloat16


def test_refuses_the_wrong_rank():
    with pytest.raises(ValueError, match=r"\(R, P, D\), got shape \(5, 8\)"):
        TrendHead(8, 24, builds_change=True)(torch.zeros(5, 8))
