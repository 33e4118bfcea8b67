"""What a run tells its reader before it trains: its data, its parameters, its closed forms."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dist_train import distributed
from dist_train.closed_form import ClosedForm
from dist_train.config import RunConfig
from dist_train.data.windows import ForecastData
from dist_train.engine import whole_numel
from dist_train.precision import dtype_name
from dist_train.retrieval import Retriever
from model.anchor_fit import AnchorFit
from model.forecaster import Forecaster


def opening(config: RunConfig, data: ForecastData, world_size: int, dtype: torch.dtype) -> str:
    """Say what is about to be trained on what, in a few lines."""
    counts = {split: len(data.windows[split]) for split in ("train", "val", "test")}
    lines = [
        f"run {config.name}: {data.series_set.name}, {data.num_channels} series of "
        f"{_lengths(data)} steps, {config.data.seq_len} -> "
        f"{config.data.told_horizon} steps",
        f"windows: {counts['train']} train, {counts['val']} validation, {counts['test']} test",
        f"{world_size} rank(s) on {distributed.device().type}, {dtype_name(dtype)}, "
        f"ZeRO-{config.deepspeed.zero_stage}, backbone {config.backbone.name} "
        f"({config.backbone.llm_layers} layers)",
    ]
    notes = list(data.series_set.notes)
    if config.model.individual and data.num_variates == 1:
        notes.append("a window has one variate, so there are no individual weights")
    return "\n".join([*lines, *(f"note: {note}" for note in notes)])


def _lengths(data: ForecastData) -> str:
    lengths = [len(series.values) for series in data.series_set.series]
    shortest, longest = min(lengths), max(lengths)
    return str(longest) if shortest == longest else f"{shortest} to {longest}"


@dataclass(frozen=True)
class Sizes:
    """How many numbers a model consists of."""

    trained: int
    frozen: int


def sizes(model: Forecaster) -> Sizes:
    """Count the parameters of a model, of all shards under ZeRO-3. Not collective."""
    counts = {True: 0, False: 0}
    for parameter in model.parameters():
        counts[parameter.requires_grad] += _size(parameter)
    return Sizes(counts[True], counts[False])


def parameters(
    size: Sizes,
    closed: ClosedForm,
    retriever: Retriever | None,
    sources: Sequence[str] = ("",),
) -> str:
    """Say what is trained, what is frozen, and what the closed forms reach on validation.

    Args:
        size: Of the model.
        closed: The closed forms.
        retriever: The memory; None: none.
        sources: Names of the sources; of one it is not told.
    """
    ridge, verdict = closed.ridge, closed.verdict
    lines = [
        f"{size.trained:,} trained and {size.frozen:,} frozen parameters; ridge on validation: "
        f"mse {ridge.validation_mse:.4f} (lambda {ridge.lam:g}, norm {ridge.norm})"
    ]
    if verdict is not None:
        lines.append(
            f"ridge on a sample of windows, on validation: mse "
            f"{verdict.without.validation_mse:.4f} without and "
            f"{verdict.with_retrieval.validation_mse:.4f} with retrieved futures"
            + _beyond(verdict.with_retrieval)
        )
        if verdict.by_source:
            each = [f"{name} {without:.4f} and {reading:.4f}"
                    for name, (without, reading) in verdict.by_source.items()]  # fmt: skip
            lines.append(f"the same by source: {', '.join(each)}")
    if closed.extended:
        for name, fit in zip(sources, closed.extended, strict=True):
            which = f" of {name}" if len(sources) > 1 else ""
            told = f"mse {fit.validation_mse:.4f}{_beyond(fit)}"
            lines.append(f"anchor{which} on validation: {told}")
    if retriever is None:
        lines.append("memory: off")
    else:
        bank = retriever.bank
        sampled = "" if len(bank) == bank.num_candidates else f" of {bank.num_candidates:,}, even"
        reason = retriever.builder.reason
        lines.append(f"memory: on, {len(bank):,} entries{sampled}; {reason}")
        if retriever.off:
            lines.append(
                f"memory: off for windows of {', '.join(retriever.off)}, where retrieval does not "
                "help on validation"
            )
    return "\n".join(lines)


def _beyond(fit: AnchorFit) -> str:
    """What a fit is more than weights that all windows share."""
    told = ""
    if fit.deviations:
        own = sum(lam is not None for lam in fit.deviations)
        told += f", weights of their own for {own} of {len(fit.deviations)} variates"
    if fit.extension.calendar != "none":
        told += f", weights that follow the {fit.extension.calendar}"
    if fit.extension.random_features:
        told += f", {fit.extension.random_features} random features"
    return told


def _size(parameter: torch.nn.Parameter) -> int:
    """Numbers that a parameter stands for: in all shards under ZeRO-3, in its 4-bit blocks."""
    packed = getattr(parameter, "quant_state", None)
    if packed is not None:
        return math.prod(packed.shape)
    return whole_numel(parameter)
