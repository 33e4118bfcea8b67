"""What any forecast must be held against, on the same windows: ridge, DLinear and two naive ones.

Shape legend (this file):
    B  windows in the batch   L  seq_len   H  pred_len   N  variates   R  rows (window, variate)
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dist_train import distributed, progress, stop_signals
from dist_train.data.collate import WindowBatch
from dist_train.data.windows import ForecastData, WindowSet
from dist_train.evaluation import Forecast
from model.anchor_fit import (
    NORMS,
    AnchorFit,
    GramAccumulator,
    anchor_of,
    fit_anchor,
    fit_individual,
)
from model.batch import from_rows, to_rows
from model.config import NO_EXTENSION, Extension
from model.horizons import mean_squared_error
from model.shared_sums import SharedSums, with_all_steps

CHUNK_ROWS = 8192

SOURCE_WINDOWS = 2**16
"""Windows of each of several sources that its ridge is fitted to; they overlap, so an even sample
says nearly as much as all of them."""

DLINEAR_KERNEL = 25  # moving average of the published DLinear
DLINEAR_BATCH = 32
DLINEAR_MAX_ROWS = 1024
DLINEAR_VAL_ROWS = 8192
DLINEAR_STEPS = 3000
DLINEAR_CHECK_EVERY = 300
DLINEAR_PATIENCE = 3
DLINEAR_LEARNING_RATE = 1e-3


def fit_ridge(data: ForecastData) -> AnchorFit:
    """Fit the ridge on the training windows, penalty and norm chosen on validation; collective.

    Every rank reads its share of the windows, and only sums of products are exchanged. All
    variates are rows of one regression.

    Source: the protocol of Toner and Darlow 2024 (arXiv:2403.14587), closed-form linear models.
    """
    train, val = (_grams(data.windows[split]) for split in ("train", "val"))
    return fit_anchor(train, val)


def fit_ridges(data: ForecastData) -> tuple[AnchorFit, tuple[AnchorFit, ...]]:
    """Fit one ridge to all sources and one to each, in one pass; collective.

    Each source counts with an even sample of its windows, at most :data:`SOURCE_WINDOWS`.

    Returns:
        The ridge of all training windows, which validation of all trained sources chose; and the
        ridge of each source, where it has training windows, else the ridge of all. One source:
        :func:`fit_ridge`, and none.
    """
    if len(data.sources) == 1:
        return fit_ridge(data), ()
    joint, by_source, _ = fit_ridges_and_extended(data, [NO_EXTENSION] * len(data.sources))
    return joint, by_source


def fit_ridges_and_extended(
    data: ForecastData, extensions: Sequence[Extension]
) -> tuple[AnchorFit, tuple[AnchorFit, ...], tuple[AnchorFit, ...]]:
    """As :func:`fit_ridges` of several sources, and for each one that may be more; collective.

    Args:
        data: The series.
        extensions: What the last ones may read beside the window, of each source.

    Returns:
        As :func:`fit_ridges`; and the same of each source with as much of its extension as is best
        on its validation, the ridge of all where it has no training windows.
    """
    own, extended, of_all = dict[int, AnchorFit](), dict[int, AnchorFit](), SharedSums()
    for number in data.trained_sources:
        windows = data.only(number).windows
        train, val = (
            _grams(windows[split], extension=extensions[number], limit=SOURCE_WINDOWS)
            for split in ("train", "val")
        )
        plain = [[sums.only(NO_EXTENSION) for sums in split] for split in (train, val)]
        own[number] = with_all_steps(fit_anchor(plain[0], plain[1]), data.pred_len)
        of_all.add(plain[0], plain[1])
        if extensions[number]:
            extended[number] = with_all_steps(fit_anchor(train, val), data.pred_len)
        del train, val, plain  # before those of the next one are made
    joint = of_all.fit()
    by_source = tuple(own.get(number, joint) for number in range(len(data.sources)))
    return joint, by_source, tuple(extended.get(n, fit) for n, fit in enumerate(by_source))


def fit_ridge_and_extended(
    data: ForecastData, *, extension: Extension = NO_EXTENSION, individual: bool = False
) -> tuple[AnchorFit, AnchorFit]:
    """Fit the ridge, and one that may be more, in one pass; collective.

    Args:
        data: The series of one source.
        extension: What the second one may read beside the window.
        individual: Whether each variate's weights may be its own there.

    Returns:
        :func:`fit_ridge`; and the same with as much of the extension as is best on validation,
        and weights that :func:`~model.anchor_fit.fit_individual` has let deviate.
    """
    num_variates = data.num_variates if individual else 1
    train, val = (
        _grams(data.windows[split], extension=extension, num_variates=num_variates)
        for split in ("train", "val")
    )
    of_all = [sums.pooled() for sums in train], [sums.pooled() for sums in val]
    plain = [[sums.only(NO_EXTENSION) for sums in split] for split in of_all]
    ridge = fit_anchor(plain[0], plain[1])
    shared = fit_anchor(*of_all) if extension else ridge
    if not individual:
        return ridge, shared
    progress.enter("ridge of each variate")
    return ridge, fit_individual(train, val, shared, mark=progress.mark)


def ridge_forecast(*fits: AnchorFit) -> Forecast:
    """Forecast with a fitted ridge, or with that of each window's source."""
    anchor = anchor_of(*fits, seq_len=fits[0].weight.shape[-1]).to(distributed.device())

    def forecast(batch: WindowBatch) -> Tensor:
        forecast_RH = anchor(to_rows(batch.context), sources=batch.sources)
        return from_rows(forecast_RH, batch.context.shape[2])

    return forecast


def row_forecast(module: nn.Module) -> Forecast:
    """Forecast with a module that maps rows (R, L) to rows (R, H), each variate by itself."""

    def forecast(batch: WindowBatch) -> Tensor:
        return from_rows(module(to_rows(batch.context)), batch.context.shape[2])

    return forecast


def repeat_last(batch: WindowBatch) -> Tensor:
    """Forecast the last value at every step. (B, L, N) -> (B, H, N)."""
    return batch.context[:, -1:].expand(-1, batch.target.shape[1], -1)


def seasonal_naive(*periods: int) -> Forecast:
    """Forecast the last full season over and over; with a season beyond L, the last value.

    Args:
        periods: Steps per season, of each source.
    """

    def of_period(batch: WindowBatch, period: int) -> Tensor:
        if period > batch.context.shape[1]:
            return repeat_last(batch)
        steps_H = torch.arange(batch.target.shape[1]) % period
        return batch.context[:, -period:][:, steps_H]

    def forecast(batch: WindowBatch) -> Tensor:
        forecast_BHN = of_period(batch, periods[0])
        for source, period in enumerate(periods[1:], start=1):
            assert batch.sources is not None
            here_B11 = (batch.sources == source)[:, None, None]
            forecast_BHN = torch.where(here_B11, of_period(batch, period), forecast_BHN)
        return forecast_BHN

    return forecast


class DLinear(nn.Module):
    """One linear map of the moving average and one of what remains, shared by all variates.

    Source: Zeng et al. 2023 (arXiv:2205.13504).
    """

    def __init__(self, seq_len: int, pred_len: int) -> None:
        super().__init__()
        self.trend = nn.Linear(seq_len, pred_len)
        self.remainder = nn.Linear(seq_len, pred_len)
        for layer in (self.trend, self.remainder):
            nn.init.constant_(layer.weight, 1 / seq_len)

    def forward(self, rows: Tensor) -> Tensor:
        """Forecast rows. (R, L) -> (R, H)."""
        side = DLINEAR_KERNEL // 2
        padded_R1L = F.pad(rows[:, None], (side, side), mode="replicate")
        trend_RL = F.avg_pool1d(padded_R1L, DLINEAR_KERNEL, stride=1)[:, 0]
        forecast_RH: Tensor = self.trend(trend_RL) + self.remainder(rows - trend_RL)
        return forecast_RH


def fit_dlinear(data: ForecastData, seed: int) -> Forecast:
    """Train DLinear by Adam with early stopping on validation; collective.

    Rank 0 trains, because it takes seconds, and the others receive its weights.
    """
    train = data.windows["train"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = DLinear(train.seq_len, train.pred_len)
        if distributed.is_main_rank():
            _train_dlinear(module, data)
    for parameter in module.parameters():
        parameter.data.copy_(distributed.broadcast(parameter.data))
    return row_forecast(module.to(distributed.device()))


def _train_dlinear(module: DLinear, data: ForecastData) -> None:
    train, val = data.windows["train"], data.windows["val_selection"]
    # Some thousand validation rows, evenly spread, are enough to decide when to stop; and with
    # hundreds of variates a batch holds fewer windows, for the other ranks wait meanwhile.
    wanted = max(1, DLINEAR_VAL_ROWS // val.num_variates // len(data.trained_sources))
    parts = [data.series_of_sources[number] for number in data.trained_sources]
    val_rows = _rows(val, np.concatenate([val.even_sample(wanted, part) for part in parts]))
    batch = min(DLINEAR_BATCH, len(train), max(1, DLINEAR_MAX_ROWS // train.num_variates))
    optimizer = torch.optim.Adam(module.parameters(), lr=DLINEAR_LEARNING_RATE)
    # At a constant rate its last steps would only wander about the least squares.
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0, total_iters=DLINEAR_STEPS)
    best, best_state, bad = float("inf"), module.state_dict(), 0
    progress.enter("training DLinear")
    for step in range(1, DLINEAR_STEPS + 1):
        progress.mark()
        if stop_signals.is_due():  # the scoring that it is for will stop before its first batch
            break
        ids = torch.randint(len(train), (batch,)).numpy()
        context_RL, target_RH = _rows(train, ids)
        loss = mean_squared_error(module(context_RL), target_RH)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        if step % DLINEAR_CHECK_EVERY == 0:
            with torch.no_grad():
                mse = float(mean_squared_error(module(val_rows[0]), val_rows[1]))
            if mse < best:
                best, bad = mse, 0
                best_state = {name: value.clone() for name, value in module.state_dict().items()}
            else:
                bad += 1
                if bad == DLINEAR_PATIENCE:
                    break
    module.load_state_dict(best_state)


def _grams(
    windows: WindowSet,
    *,
    extension: Extension = NO_EXTENSION,
    limit: int | None = None,
    num_variates: int = 1,
) -> list[GramAccumulator]:
    """Accumulate this rank's contiguous share for each norm, and add up all ranks; collective.

    Of more than ``limit`` windows an even sample is read. With ``num_variates`` above 1 there are
    sums for each of them.
    """
    shape = (windows.seq_len, windows.pred_len)
    grams = [
        GramAccumulator(*shape, norm, extension=extension, num_variates=num_variates)
        for norm in NORMS
    ]
    world_size, rank = distributed.world_size(), distributed.rank()
    size = len(windows)
    sample = windows.even_sample(limit) if limit is not None and limit < size else None
    size = size if sample is None else len(sample)
    begin, end = (size * part // world_size for part in (rank, rank + 1))
    chunk = max(1, CHUNK_ROWS // windows.num_variates)
    progress.enter("ridge")
    for first in range(begin, end, chunk):
        progress.mark()
        ids = np.arange(first, min(first + chunk, end))
        ids = ids if sample is None else sample[ids]
        context_RL, target_RH = _rows(windows, ids)
        phase = windows.calendar_phase(ids) if extension.calendar != "none" else None
        phase_B4 = None if phase is None else torch.from_numpy(phase)
        for gram in grams:
            gram.add(context_RL, target_RH, None, phase_B4)
    for gram in grams:
        distributed.sum_in_place(gram.tensors)
    return grams


def _rows(windows: WindowSet, ids: np.ndarray) -> tuple[Tensor, Tensor]:
    """Windows as rows, one per variate: (R, L) and (R, H)."""
    context_BLN, target_BHN = windows.batch(ids)
    return to_rows(torch.from_numpy(context_BLN)), to_rows(torch.from_numpy(target_BHN))


def own_ridges(joint: AnchorFit, by_source: Sequence[AnchorFit]) -> Sequence[AnchorFit]:
    """What the row ``ridge`` of every table forecasts with: each source's own, where there are."""
    return by_source or (joint,)


def all_baselines(
    data: ForecastData, ridge: AnchorFit, seed: int, by_source: Sequence[AnchorFit] = ()
) -> dict[str, Forecast]:
    """Every baseline by the name its row has in a table; collective, DLinear is trained here."""
    ridges = {"ridge": ridge_forecast(*own_ridges(ridge, by_source))}
    if by_source:
        ridges["ridge of all"] = ridge_forecast(ridge)
    return {
        **ridges,
        "DLinear": fit_dlinear(data, seed),
        "seasonal naive": seasonal_naive(*data.seasonal_periods),
        "repeat last": repeat_last,
    }
