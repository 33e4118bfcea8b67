"""Calibrate a run's intervals on its validation windows, and keep them in its folder.

Shape legend (this file):
    W  sampled windows   V  those of this rank   B  windows of a batch
    N  variates          H  pred_len             C  channels
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dist_train import distributed, progress
from dist_train.checkpoint import CheckpointError, read_manifest
from dist_train.conformal import (
    MIN_WINDOWS,
    Calibration,
    bounds_of,
    channel_floor,
    supported_levels,
)
from dist_train.data.collate import make_loader
from dist_train.data.prompts import PromptBuilder
from dist_train.data.sampler import EvaluationBatch, EvaluationSampler
from dist_train.data.windows import ForecastData
from dist_train.evaluation import Forecast
from dist_train.memory_account import account
from memory_index.atomic_file import replacing, write_tensors

FILE = "calibration.safetensors"
METHOD = "split conformal, signed errors over the window's own spread, per channel and step"
MAX_WINDOWS = 1024
"""Windows that are forecast, evenly spread over validation; neighbours tell nearly the same."""

WINDOWS_PER_SERIES = 2 * MIN_WINDOWS
MAX_ERRORS = 1 << 27
"""Errors that all ranks together hold."""

EXCHANGED = 1 << 22  # errors per exchange


def calibrate(
    forecast: Forecast,
    data: ForecastData,
    *,
    batch_size: int,
    prompt_builder: PromptBuilder | None = None,
    num_workers: int = 0,
    between: Callable[[], None] | None = None,
) -> Calibration:
    """Measure the errors of a forecaster on validation, and rank them; collective.

    The result does not depend on the number of ranks. Validation has also chosen the best step and
    the ridge's penalty, which is why coverage is measured on test.

    Args:
        forecast: Forecasts a batch of ``data.windows["val"]``.
        data: The series.
        batch_size: Windows per forward pass of one rank.
        prompt_builder: Makes the prompts; None where the forecaster reads none.
        num_workers: Processes that prepare batches.
        between: Called before each batch, on every rank as often; may be collective, and raise.

    Returns:
        The same on every rank.
    """
    sample = choose_windows(data)
    errors = _measure(forecast, data, sample, batch_size, prompt_builder, num_workers, between)
    series_W, _ = data.windows["val"].locate_batch(sample)
    progress.enter("calibrating")
    return errors.rank(series_W, data)


def choose_windows(data: ForecastData) -> np.ndarray:
    """Numbers of the validation windows that are forecast, ascending and evenly spread.

    Each source is sampled by itself, so that a long one does not keep a short one out.
    """
    windows = data.windows["val"]
    parts = data.series_of_sources
    wanted = [max(MAX_WINDOWS, WINDOWS_PER_SERIES * _size(part)) for part in parts]
    held = max(1, MAX_ERRORS // (windows.num_variates * windows.pred_len))
    allowed = min(held, sum(wanted))
    return np.concatenate([
        windows.even_sample(max(1, most * allowed // sum(wanted)), part)
        for most, part in zip(wanted, parts, strict=True)
    ])  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _Errors:
    """Errors of this rank's share of the sampled windows."""

    errors: np.ndarray
    """Truth minus forecast, NaN beyond the horizon of a window. Shape (V, N, H), float32."""

    variance: np.ndarray
    """Of what they continue. Shape (V, N), float64."""

    begin: int
    """Place of the first of them in the sample."""

    num_sampled: int
    """W."""

    def rank(self, series: np.ndarray, data: ForecastData) -> Calibration:
        """Rank the errors of all ranks; collective.

        The channels of a source share their ranks where one of its series has too few windows.

        Args:
            series: Series of each sampled window, ascending. Shape (W,).
            data: What the windows are of.
        """
        num_own, num_variates, pred_len = self.errors.shape
        variance_WN = self._gather(self.variance)
        bounds = np.searchsorted(series, np.arange(len(data.scalers) + 1)).tolist()
        members = [slice(first, end) for first, end in pairwise(bounds)]
        everything = slice(0, self.num_sampled)
        floors: list[np.ndarray] = []
        # What is ranked together, whether over variates too, and what serves each channel.
        ranked: list[tuple[slice, bool]] = []
        groups: list[int] = []
        usable, sharing = [], []
        # Of ranks that windows of several horizons may share: steps that need a bound.
        carried: dict[int, int] = {}
        bounds_there = 0
        for source, part in zip(data.sources, data.series_of_sources, strict=True):
            own = members[part]
            whole, channels = slice(own[0].start, own[-1].stop), len(own) * num_variates
            fewest = min(_size(one) for one in own)
            if fewest < MIN_WINDOWS:
                # A source that has too few as a whole is ranked with all the others.
                if _size(whole) * num_variates < MIN_WINDOWS:
                    whole = everything
                sharing.append(source.name)
                ranked.append((whole, True))
                usable.append(_size(whole) * num_variates)
                carried[bounds_there] = data.windows["val"].horizon_of(part.start)
                groups += [bounds_there] * channels
                bounds_there += 1
            else:
                ranked += [(one, False) for one in own]
                usable.append(fewest)
                groups += range(bounds_there, bounds_there + channels)
                bounds_there += channels
            floors += [channel_floor(variance_WN[one if _size(one) else whole]) for one in own]
        floor_SN = np.stack(floors)
        levels = supported_levels(min(usable))
        floor_VN = floor_SN[series[self.begin : self.begin + num_own]]
        spread_VN1 = np.sqrt(self.variance + floor_VN.astype(np.float64) ** 2)[..., None]
        scores_VNH = (self.errors / spread_VN1).astype(np.float32)
        step = max(1, EXCHANGED // (self.num_sampled * num_variates))
        parts = []
        for first in range(0, pred_len, step):
            progress.mark()
            scores_WNH = self._gather(scores_VNH[..., first : first + step])
            pieces = []
            for one, pooled in ranked:
                scores = scores_WNH[one]
                if pooled:
                    scores = scores.reshape(-1, 1, scores.shape[-1])
                pieces.append(bounds_of(scores, levels))
            lower, upper = (np.concatenate(bound, 1) for bound in zip(*pieces, strict=True))
            parts.append((lower, upper))
        lower, upper = (np.concatenate(bound, axis=2) for bound in zip(*parts, strict=True))
        for place, horizon in carried.items():
            for bound in (lower, upper):
                _carry_on(bound[:, place, :horizon])
        return Calibration(
            levels=levels, lower=lower, upper=upper, floor=floor_SN.reshape(-1),
            num_windows=min(usable),
            groups=np.array(groups) if sharing and len(data.sources) > 1 else None,
            facts={
                "method": METHOD, "split": "val", "windows_of_split": len(data.windows["val"]),
                "windows_forecast": self.num_sampled, "ranks_shared_by_channels_of": sharing,
            },
        )  # fmt: skip

    def _gather(self, own: np.ndarray) -> np.ndarray:
        """Put the shares of all ranks together, exactly: the others are zero; collective."""
        whole = torch.zeros(self.num_sampled, *own.shape[1:], dtype=torch.from_numpy(own).dtype)
        whole[self.begin : self.begin + len(own)] = torch.from_numpy(own)
        gathered: np.ndarray = distributed.reduce_sum(whole).numpy()
        return gathered


def _carry_on(bounds: np.ndarray) -> None:
    """Give a step that too few windows are forecast to the bounds of the last one before it.

    All of them, or a level might be bounded more narrowly than a lower one.

    Args:
        bounds: NaN for some level at such steps, never at the first. Shape (levels, H); changed in
            place.
    """
    for step in range(1, bounds.shape[1]):
        if np.isnan(bounds[:, step]).any():
            bounds[:, step] = bounds[:, step - 1]


def _size(part: slice) -> int:
    size: int = part.stop - part.start
    return size


class _Sampled:
    """A sampler's numbers read as places in a sample of windows."""

    def __init__(self, sampler: EvaluationSampler, sample: np.ndarray) -> None:
        self._sampler, self._sample = sampler, sample

    def __iter__(self) -> Iterator[EvaluationBatch]:
        for places, num_valid in self._sampler:
            yield EvaluationBatch([int(number) for number in self._sample[places]], num_valid)

    def __len__(self) -> int:
        return len(self._sampler)


def _measure(
    forecast: Forecast,
    data: ForecastData,
    sample: np.ndarray,
    batch_size: int,
    prompt_builder: PromptBuilder | None,
    num_workers: int,
    between: Callable[[], None] | None,
) -> _Errors:
    windows = data.windows["val"]
    sampler = EvaluationSampler(
        len(sample), batch_size, distributed.rank(), distributed.world_size()
    )
    loader = make_loader(windows, _Sampled(sampler, sample), prompt_builder, num_workers)
    errors: list[Tensor] = [torch.empty(0, windows.num_variates, windows.pred_len)]
    variances: list[np.ndarray] = [np.empty((0, windows.num_variates))]
    progress.enter("calibrating on val")
    with torch.no_grad(), account.phase("evaluation"):
        for batch in loader:
            progress.mark()
            if between is not None:
                between()
            valid = batch.num_valid
            forecast_BHN = forecast(batch.to(distributed.device())).float().cpu()[:valid]
            errors.append((batch.target[:valid] - forecast_BHN).transpose(1, 2))
            context_BLN = batch.context[:valid].numpy()
            variances.append(np.var(context_BLN, axis=1, dtype=np.float64))
    return _Errors(
        errors=torch.cat(errors).numpy(), variance=np.concatenate(variances),
        begin=sampler.begin, num_sampled=len(sample),
    )  # fmt: skip


def save(
    folder: Path, calibration: Calibration, data: ForecastData, *, weights: str | None = None
) -> Calibration | None:
    """Write a calibration into the folder of the run it belongs to; on one rank only.

    Args:
        folder: Of the run; its best model has been saved.
        calibration: Of that model.
        data: What it was made from.
        weights: Checksum of that model's weights; None: what lies in the folder is that model.

    Returns:
        The calibration with the facts that tie it to model and data; None, and nothing written,
        where another model has become the best one since.

    Raises:
        OSError: It cannot be written.
        CheckpointError: The run has no best model.
    """
    found = _model_of(folder)
    if weights is not None and weights != found:
        return None
    tied = {"model": found, "data": data.series_set.checksum}
    calibration = replace(calibration, facts={**calibration.facts, **tied})
    with replacing(folder / FILE) as beside:
        write(beside, calibration)
    return calibration


def write(path: Path, calibration: Calibration) -> None:
    """Write a calibration as a safetensors file with a checksum of its own; not atomic.

    Raises:
        OSError: It cannot be written.
    """
    tensors, facts = calibration.to_tensors()
    described = {"facts": facts, "sha256": _checksum(tensors, facts)}
    write_tensors(path, tensors, {"calibration": json.dumps(described)})


def read(path: Path) -> Calibration:
    """Read what :func:`write` has written.

    Raises:
        SafetensorError: It is no safetensors file; also OSError, ValueError, KeyError, TypeError
            and RecursionError, for what else may lie there.
    """
    with safe_open(path, framework="pt") as file:
        described = json.loads((file.metadata() or {})["calibration"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if described["sha256"] != _checksum(tensors, described["facts"]):
        raise ValueError("altered since it was saved (checksum differs)")
    return Calibration.from_tensors(tensors, described["facts"])


def load(folder: Path) -> Calibration | None:
    """Read the calibration of a run's best model; None where it has none, or an older model's.

    Raises:
        CheckpointError: It is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        calibration = read(path)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: not a calibration ({error}); move it away, and timellm evaluate --run "
            f"{folder} makes it anew."
        ) from error
    return calibration if calibration.facts.get("model") == _model_of(folder) else None


def _model_of(folder: Path) -> str:
    """Checksum of the weights that a calibration is tied to."""
    return str(read_manifest(folder / "best")["sha256"]["model.safetensors"])


def _checksum(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(f"{name}{tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].numpy().tobytes())
    return digest.hexdigest()
