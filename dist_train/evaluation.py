"""Score forecasts of a split: every window exactly once, on any number of ranks.

Shape legend (this file):
    B  windows in the batch   L  seq_len   H  pred_len   N  variates   C  channels
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from dist_train import distributed, progress
from dist_train.data.collate import WindowBatch, make_loader
from dist_train.data.prompts import PromptBuilder
from dist_train.data.sampler import EvaluationSampler
from dist_train.data.windows import ForecastData
from dist_train.memory_account import account
from dist_train.metrics import ErrorSums, Scores

Forecast = Callable[[WindowBatch], Tensor]
"""A forecaster as scoring sees it: a batch on this rank's device -> forecasts (B, H, N)."""

Observer = Callable[[WindowBatch, Tensor], None]
"""Told of a batch, on this rank's device, and the forecasts (V, H, N) of its V valid windows."""


def score_split(
    forecasts: Mapping[str, Forecast],
    data: ForecastData,
    split: str,
    *,
    batch_size: int,
    prompt_builder: PromptBuilder | None = None,
    num_workers: int = 0,
    between: Callable[[], None] | None = None,
    observers: Sequence[Observer] = (),
) -> dict[str, ErrorSums]:
    """Score forecasters on all windows of a split; collective.

    Every rank makes the same number of forward passes, because a forward of ZeRO-3 is collective;
    a rank that has run out repeats windows, which are not counted.

    Args:
        forecasts: Forecasters by name; each sees the same batches.
        data: The series.
        split: Key of ``data.windows``: train, val, val_selection or test.
        batch_size: Windows per forward pass of one rank; does not change the sums.
        prompt_builder: Makes the prompts of a batch; None where no forecaster reads them.
        num_workers: Processes that prepare batches.
        between: Called before each batch, on every rank as often; may be collective, and raise.
        observers: Told of each window once, in order on each rank, with the first forecaster's
            forecast; not collective.

    Returns:
        The error sums of each forecaster over all ranks, equal on every rank.
    """
    windows = data.windows[split]
    sums = {name: ErrorSums(data.num_channels, windows.pred_len) for name in forecasts}
    sampler = EvaluationSampler(
        len(windows), batch_size, distributed.rank(), distributed.world_size()
    )
    loader = make_loader(windows, sampler, prompt_builder, num_workers)
    device = distributed.device()
    first = next(iter(forecasts))
    progress.enter(f"scoring {split}")
    with torch.no_grad(), account.phase("evaluation"):
        for batch in loader:
            progress.mark()
            if between is not None:
                between()
            valid = batch.num_valid
            channels = torch.from_numpy(data.channels_of(batch.window_ids.numpy(), split))
            on_device = batch.to(device)
            for name, forecast in forecasts.items():
                predicted = forecast(on_device)
                sums[name].add(predicted[:valid], on_device.target[:valid], channels[:valid])
                if name == first and valid:
                    for observe in observers:
                        observe(on_device, predicted[:valid])
    for total in sums.values():
        total.reduce()
    return sums


def finish_scores(sums: Mapping[str, ErrorSums], data: ForecastData) -> dict[str, Scores]:
    """Turn error sums into scores in standardised and original units.

    With several sources MSE, MAE and MASE are means over them: none rules by its size alone.
    """
    naive = seasonal_naive_mae(data)
    scale = data.scale_of_channels()
    scores = {name: total.scores(data.num_variates, scale, naive) for name, total in sums.items()}
    if len(data.sources) == 1:
        return scores
    by_source = scores_by_source(sums, data).values()

    def mean(row: str, error: str) -> float:
        return float(np.mean([getattr(scores[row], error) for scores in by_source]))

    return {
        name: replace(row, mse=mean(name, "mse"), mae=mean(name, "mae"), mase=mean(name, "mase"))
        for name, row in scores.items()
    }


def scores_by_source(
    sums: Mapping[str, ErrorSums], data: ForecastData
) -> dict[str, dict[str, Scores]]:
    """Turn error sums into the scores of each source, by its name and the forecaster's."""
    naive, scale = seasonal_naive_mae(data), data.scale_of_channels()
    return {
        source: {
            name: total.of_channels(part).scores(data.num_variates, scale[part], naive[part])
            for name, total in sums.items()
        }
        for source, part in data.source_channels().items()
    }


def selection_mse(total: ErrorSums, data: ForecastData) -> float:
    """What model selection looks at: the mean over sources, so that none rules by its size alone.

    A source that is not trained on has no voice: choosing by it would be training on it.
    """
    parts = list(data.source_channels().values())
    voices = [parts[number] for number in data.trained_sources]
    return sum(total.of_channels(part).mse() for part in voices) / len(voices)


def seasonal_naive_mae(data: ForecastData) -> np.ndarray:
    """MAE of seasonal naive on the training rows, in original units: the scale of MASE.

    Returns:
        One value per channel, 0 where the training rows are constant. Shape (C,).

    Source: Hyndman and Koehler 2006, "Another look at measures of forecast accuracy".
    """
    per_series = []
    for number in range(len(data.series_set.series)):
        train_TN = data.train_values(number)
        period = data.sources[int(data.source_of(np.array(number)))].series_set.seasonal_period
        lag = period if len(train_TN) > period else 1
        per_series.append(np.abs(train_TN[lag:] - train_TN[:-lag]).mean(axis=0))
    return np.concatenate(per_series)
