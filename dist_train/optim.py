"""Parameter groups of the trained parameters, and the course of the learning rate."""

import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler, OneCycleLR

from dist_train.config import TrainConfig


def build_optimizer(module: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """Make AdamW over what is trained; matrices decay, vectors and scalars do not.

    Empty groups are dropped: schedulers of torch 2.13 fail on them.
    """
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    # Fused: one pass over the memory instead of a dozen, and no temporaries as large as a matrix.
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)


def build_schedule(
    optimizer: torch.optim.Optimizer, config: TrainConfig, total_steps: int
) -> LRScheduler:
    """Make the learning-rate schedule; it is stepped once per optimizer step.

    Args:
        optimizer: Whose learning rate it sets.
        config: Kind and peak.
        total_steps: Optimizer steps of the whole run.
    """
    if config.schedule == "onecycle":
        length = total_steps + 1
        return OneCycleLR(
            optimizer,
            max_lr=config.learning_rate,
            total_steps=length,
            pct_start=max(0.2, 2 / length),  # at least one step up, also in the shortest run
            cycle_momentum=False,
        )
    if config.schedule == "cosine":
        return CosineAnnealingLR(optimizer, T_max=total_steps)
    return LambdaLR(optimizer, lambda step: 1.0)
