"""dist_train/optim.py: what is trained, what decays, and the course of the learning rate."""

import pytest
import torch
from torch import nn

from dist_train.config import TrainConfig
from dist_train.optim import build_optimizer, build_schedule


def test_only_trained_parameters_are_optimised_and_only_matrices_decay():
    frozen = nn.Linear(2, 2).requires_grad_(False)
    trained = nn.Linear(2, 3)
    groups = build_optimizer(nn.Sequential(frozen, trained), TrainConfig()).param_groups
    by_decay = {group["weight_decay"]: group["params"] for group in groups}
    assert [p is trained.weight for p in by_decay[0.01]] == [True]
    assert [p is trained.bias for p in by_decay[0.0]] == [True]


def test_a_step_is_that_of_adamw_written_out():
    module = nn.Linear(2, 2, bias=False)
    before, gradient = module.weight.detach().clone(), torch.tensor([[1.0, -2.0], [0.5, 3.0]])
    module.weight.grad = gradient
    config = TrainConfig(learning_rate=0.1, weight_decay=0.2)
    build_optimizer(module, config).step()
    # The first step's two moments are the gradient and its square, once corrected for their start.
    expected = before * (1 - 0.1 * 0.2) - 0.1 * gradient / (gradient.abs() + 1e-8)
    assert torch.allclose(module.weight, expected)


def test_an_empty_group_is_dropped():
    module = nn.Linear(2, 2, bias=False)
    assert len(build_optimizer(module, TrainConfig()).param_groups) == 1


def rates(schedule: str, steps: int) -> list[float]:
    config = TrainConfig(schedule=schedule, learning_rate=1.0)  # type: ignore[arg-type]
    optimizer = build_optimizer(nn.Linear(2, 2), config)
    course = build_schedule(optimizer, config, steps)
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        course.step()
    return seen


def test_one_cycle_rises_to_the_peak_and_falls_to_nothing():
    seen = rates("onecycle", 100)
    peak = seen.index(max(seen))
    assert max(seen) == pytest.approx(1.0, abs=1e-2)
    assert 15 <= peak <= 25
    assert seen[: peak + 1] == sorted(seen[: peak + 1])
    assert seen[peak:] == sorted(seen[peak:], reverse=True)
    assert seen[-1] < 1e-2


def test_cosine_falls_and_constant_does_not():
    seen = rates("cosine", 50)
    assert seen[0] == 1.0
    assert seen == sorted(seen, reverse=True)
    assert seen[-1] < 1e-2
    assert rates("constant", 5) == [1.0] * 5


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 9])
def test_any_number_of_steps_will_do(steps: int):
    assert max(rates("onecycle", steps)) <= 1.0 + 1e-6
    assert torch.isfinite(torch.tensor(rates("cosine", 1))).all()
