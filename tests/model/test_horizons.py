import torch

from model.horizons import fill_unknown, mean_squared_error, stretch

UNKNOWN = float("nan")


def test_what_is_not_known_has_no_error_and_gives_no_gradient():
    target = torch.tensor([[1.0, 2.0], [3.0, UNKNOWN]])
    forecast = torch.tensor([[0.0, 4.0], [2.0, 9.0]], requires_grad=True)
    errors = forecast - fill_unknown(target, forecast)
    assert errors.tolist() == [[-1, 2], [-1, 0]]
    errors.square().sum().backward()  # type: ignore[no-untyped-call]
    assert forecast.grad is not None
    assert forecast.grad.tolist() == [[-2, 4], [-2, 0]]


def test_a_forecast_that_is_no_number_is_not_hidden_where_the_truth_is_known():
    filled = fill_unknown(torch.ones(1, 2), torch.full((1, 2), UNKNOWN))
    assert filled.tolist() == [[1, 1]]


def test_a_mean_over_all_steps_becomes_one_over_the_known_ones():
    values = torch.tensor([[1.0, 2.0, 3.0, 6.0], [2.0, 4.0, UNKNOWN, UNKNOWN]])
    means = values.nan_to_num(0).mean(dim=1, keepdim=True) * stretch(values)
    assert means.tolist() == [[3.0], [3.0]]
    assert stretch(values).tolist() == [[1.0], [2.0]]
    assert stretch(values.double()).dtype == torch.float64
    assert stretch(torch.ones(2, 5, 3)).tolist() == [[[1.0] * 3]] * 2


def test_the_mean_counts_every_window_alike_and_is_pytorchs_where_all_is_known():
    forecast = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    target = torch.zeros(3, 4)
    (known,) = torch.autograd.grad(mean_squared_error(forecast, target), forecast)
    (expected,) = torch.autograd.grad(torch.nn.functional.mse_loss(forecast, target), forecast)
    assert torch.equal(known, expected)
    target[1, 1:] = UNKNOWN
    errors = [forecast[0].square().mean(), forecast[1, 0].square(), forecast[2].square().mean()]
    torch.testing.assert_close(mean_squared_error(forecast, target), torch.stack(errors).mean())
