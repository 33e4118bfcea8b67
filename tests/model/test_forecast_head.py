"""model/forecast_head.py: which features are read, where dropout falls, the zero start."""

import pytest
import torch

from model.forecast_head import ForecastHead


def make(dropout: float = 0.0, zero_init: bool = False) -> ForecastHead:
    torch.manual_seed(0)
    return ForecastHead(5, d_ff=3, d_llm=8, pred_len=4, dropout=dropout, zero_init=zero_init)


def test_is_a_linear_map_of_the_first_features():
    head, states = make(), torch.randn(2, 5, 8)
    wanted = [
        head.project.weight @ torch.cat([states[row, p, :3] for p in range(5)]) + head.project.bias
        for row in range(2)
    ]
    torch.testing.assert_close(head(states), torch.stack(wanted))


def test_the_other_features_are_not_read():
    head, states = make(), torch.randn(2, 5, 8)
    changed = states.clone()
    changed[..., 3:] = 99.0
    assert torch.equal(head(states), head(changed))


def test_dropout_never_zeroes_a_forecast_step():
    head = make(dropout=0.5).train()
    forecasts = torch.stack([head(torch.randn(8, 5, 8)) for _ in range(20)])
    assert (forecasts != 0).all()
    states = torch.randn(8, 5, 8)
    assert not torch.equal(head(states), head(states))


def test_zero_init_forecasts_exactly_zero():
    assert (make(zero_init=True)(torch.randn(2, 5, 8)) == 0).all()


def test_refuses_more_features_than_the_backbone_has():
    with pytest.raises(ValueError, match=r"model\.d_ff=9 .*8 features.*at most 8"):
        ForecastHead(5, d_ff=9, d_llm=8, pred_len=4, dropout=0.0, zero_init=False)


def test_refuses_another_number_of_patches():
    with pytest.raises(ValueError, match=r"states has shape \(2, 6, 8\): pass .*P=5"):
        make()(torch.zeros(2, 6, 8))
