"""Real DeepSpeed engines over a module of a few numbers, and the same training in plain torch."""

from typing import Any

import torch
from torch import Tensor, nn

from dist_train import distributed
from dist_train.config import DeepSpeedConfig, RunConfig, TrainConfig
from dist_train.engine import Engine, deepspeed_json, initialize
from dist_train.optim import build_optimizer, build_schedule

TOTAL_STEPS = 12
BATCH = 4


class Odd(nn.Module):
    """Sizes that do not divide by two, groups with and without decay, and a frozen layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 3)
        self.frozen = nn.Linear(3, 3)
        self.second = nn.Linear(3, 7, bias=False)
        self.shift = nn.Parameter(torch.zeros(7))
        self.scale = nn.Parameter(torch.ones(1))
        self.frozen.requires_grad_(False)

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, 5) -> (B, 7)."""
        hidden = torch.tanh(self.first(inputs.to(self.shift.dtype)))
        forecast: Tensor = self.second(self.frozen(hidden) + hidden) * self.scale + self.shift
        return forecast


def odd_module() -> Odd:
    """The same weights each time."""
    torch.manual_seed(3)
    return Odd()


def batch_of(step: int) -> Tensor:
    """The global batch of a step. Shape (BATCH, 5)."""
    return torch.randn(BATCH, 5, generator=torch.Generator().manual_seed(step))


def loss_of(output: Tensor) -> Tensor:
    """Mean over windows, as the training's."""
    return (output.float() - 2).square().mean()


def run_config(stage: int, *, offload: str = "none", **train: Any) -> RunConfig:
    """One window a micro-batch, so that gradients are accumulated on one rank and on two."""
    settings = {"batch_size": BATCH, "micro_batch_size": 1, "learning_rate": 0.05, **train}
    return RunConfig(
        train=TrainConfig(**settings),
        deepspeed=DeepSpeedConfig(zero_stage=stage, offload=offload),  # type: ignore[arg-type]
    )


def odd_engine(config: RunConfig, dtype: torch.dtype = torch.float32) -> Engine:
    """Collective."""
    settings = deepspeed_json(config, distributed.world_size(), dtype)
    return initialize(odd_module(), config, settings, TOTAL_STEPS)  # type: ignore[arg-type]


def own_windows(step: int) -> list[Tensor]:
    """This rank's micro-batches of a step."""
    share = BATCH // distributed.world_size()
    first = distributed.rank() * share
    return list(batch_of(step)[first : first + share].split(1))


def spoiled(kind: str, loss: Tensor, output: Tensor) -> Tensor:
    """A loss that is not finite, or whose gradient is not."""
    if kind == "gradient":
        return loss + (output - output.detach()).sqrt().sum()  # 0, with an infinite slope
    if kind == "sum":
        return loss + torch.inf  # with a slope that is finite
    return loss * float(kind)


def train_step(engine: Engine, step: int, *, spoil: str = "", where: int = -1) -> bool:
    """Do a step; the micro-batch with the number ``where``, over all ranks, is spoiled."""
    applied = True
    windows = own_windows(step)
    for number, window in enumerate(windows, start=distributed.rank() * len(windows)):
        output = engine(window)
        loss = loss_of(output)
        engine.backward(spoiled(spoil, loss, output) if number == where else loss)
        applied = engine.step()
    return applied


def train_plainly(steps: int, config: RunConfig) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights and optimizer state after some steps with torch alone, on whole batches."""
    module = odd_module()
    optimizer = build_optimizer(module, config.train)
    schedule = build_schedule(optimizer, config.train, TOTAL_STEPS)
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    for step in range(steps):
        loss_of(module(batch_of(step))).backward()
        if config.train.gradient_clipping:
            nn.utils.clip_grad_norm_(trained.values(), config.train.gradient_clipping)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    state = {
        f"{key}.{name}": value.detach().clone()
        for name, parameter in trained.items()
        for key, value in optimizer.state[parameter].items()
    }
    return {name: p.detach().clone() for name, p in trained.items()}, state
