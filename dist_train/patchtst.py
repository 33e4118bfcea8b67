"""The PatchTST baseline: the budget of the run that it stands beside, chosen on validation."""

import copy
import math

import torch
from torch import nn

from dist_train import distributed, progress
from dist_train.baselines import row_forecast
from dist_train.config import RunConfig, count_steps
from dist_train.data.windows import ForecastData
from dist_train.evaluation import Forecast, score_split
from dist_train.optim import build_optimizer, build_schedule
from dist_train.reproducibility import seed_everything
from model.batch import to_rows
from model.horizons import mean_squared_error
from model.patch_transformer import PatchTransformer


def fit_patchtst(data: ForecastData, config: RunConfig) -> tuple[Forecast, nn.Module]:
    """Train PatchTST; one process.

    Steps, batches, optimizer, schedule, clipping, patience and the windows that choose the model
    are those of ``config``. The global generators are seeded from ``train.seed``.

    Returns:
        The forecaster with the lowest validation MSE, and its module.

    Raises:
        FloatingPointError: The loss is not finite.
        ValueError: The window is too short for it.
    """
    train, windows = config.train, data.windows["train"]
    steps_per_epoch = len(windows) // train.batch_size
    total = count_steps(train, steps_per_epoch)
    every = train.eval_every or steps_per_epoch
    seed_everything(train.seed)
    device = distributed.device()
    module = PatchTransformer(windows.seq_len, windows.pred_len).to(device)
    optimizer = build_optimizer(module, train)
    schedule = build_schedule(optimizer, train, total)
    best, best_state, bad = math.inf, copy.deepcopy(module.state_dict()), 0
    order = torch.empty(0, dtype=torch.int64)
    progress.enter("training PatchTST")
    for step in range(1, total + 1):
        progress.mark()
        place = (step - 1) % steps_per_epoch * train.batch_size
        if place == 0:
            order = torch.randperm(len(windows))
        ids = order[place : place + train.batch_size].numpy()
        context_BLN, target_BHN = (torch.from_numpy(part).to(device) for part in windows.batch(ids))
        loss = mean_squared_error(module(to_rows(context_BLN)), to_rows(target_BHN))
        if not bool(loss.isfinite()):
            raise FloatingPointError(f"PatchTST: the loss is {loss.item()} at step {step}.")
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if train.gradient_clipping:
            nn.utils.clip_grad_norm_(module.parameters(), train.gradient_clipping)
        optimizer.step()
        schedule.step()
        if step % every == 0 or step == total:
            mse = _validate(module, data, train.eval_batch_size)
            if mse < best:
                best, best_state, bad = mse, copy.deepcopy(module.state_dict()), 0
            else:
                bad += 1
                if bad >= train.patience:
                    break
    module.load_state_dict(best_state)
    module.eval()
    return row_forecast(module), module


def _validate(module: nn.Module, data: ForecastData, batch_size: int) -> float:
    module.eval()
    forecasts = {"PatchTST": row_forecast(module)}
    sums = score_split(forecasts, data, "val_selection", batch_size=batch_size)
    module.train()
    progress.enter("training PatchTST")
    return sums["PatchTST"].mse()
