"""What a run tells its reader: the opening lines, the table, ``report.md`` and its picture."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dist_train import distributed, plots
from dist_train.baselines import ridge_forecast
from dist_train.config import RunConfig
from dist_train.data.collate import Collator
from dist_train.data.prompts import PromptBuilder
from dist_train.data.windows import ForecastData
from dist_train.engine import whole_numel
from dist_train.evaluation import Forecast
from dist_train.metrics import Scores
from dist_train.plots import ForecastExample
from dist_train.precision import dtype_name
from dist_train.retrieval import Retriever
from dist_train.retrieval_ridge import RetrievalVerdict
from memory_index.atomic_file import write_text
from model.forecaster import Forecaster
from model.linear_anchor import AnchorFit

MAX_CHANNELS_LISTED = 32


def opening(config: RunConfig, data: ForecastData, world_size: int, dtype: torch.dtype) -> str:
    """Say what is about to be trained on what, in a few lines."""
    counts = {split: len(data.windows[split]) for split in ("train", "val", "test")}
    lines = [
        f"run {config.name}: {data.series_set.name}, {data.num_channels} series of "
        f"{_lengths(data)} steps, {config.data.seq_len} -> "
        f"{config.data.pred_len} steps",
        f"windows: {counts['train']} train, {counts['val']} validation, {counts['test']} test",
        f"{world_size} rank(s) on {distributed.device().type}, {dtype_name(dtype)}, "
        f"ZeRO-{config.deepspeed.zero_stage}, backbone {config.backbone.name} "
        f"({config.backbone.llm_layers} layers)",
    ]
    return "\n".join([*lines, *(f"note: {note}" for note in data.series_set.notes)])


def _lengths(data: ForecastData) -> str:
    lengths = [len(series.values) for series in data.series_set.series]
    shortest, longest = min(lengths), max(lengths)
    return str(longest) if shortest == longest else f"{shortest} to {longest}"


def parameters(
    model: Forecaster,
    ridge: AnchorFit,
    verdict: RetrievalVerdict | None,
    retriever: Retriever | None,
) -> str:
    """Say what is trained, what is frozen, and what the closed forms reach on validation."""
    trained = count_parameters(model, trained=True)
    frozen = count_parameters(model, trained=False)
    lines = [
        f"{trained:,} trained and {frozen:,} frozen parameters; ridge on validation: "
        f"mse {ridge.validation_mse:.4f} (lambda {ridge.lam:g}, norm {ridge.norm})"
    ]
    if verdict is not None:
        lines.append(
            f"ridge on a sample of windows, on validation: mse "
            f"{verdict.without.validation_mse:.4f} without and "
            f"{verdict.with_retrieval.validation_mse:.4f} with retrieved futures"
        )
    if retriever is None:
        lines.append("memory: off")
    else:
        bank = retriever.bank
        sampled = "" if len(bank) == bank.num_candidates else f" of {bank.num_candidates:,}, even"
        reason = retriever.builder.choice.reason
        lines.append(f"memory: on, {len(bank):,} entries{sampled}; {reason}")
    return "\n".join(lines)


def count_parameters(model: torch.nn.Module, *, trained: bool) -> int:
    """Count the numbers that are trained, or those that are not; of all shards together."""
    return sum(_size(p) for p in model.parameters() if p.requires_grad == trained)


def _size(parameter: torch.nn.Parameter) -> int:
    """Numbers that a parameter stands for: in all shards under ZeRO-3, in its 4-bit blocks."""
    packed = getattr(parameter, "quant_state", None)
    if packed is not None:
        return math.prod(packed.shape)
    return whole_numel(parameter)


def table(scores: Mapping[str, Scores]) -> str:
    """Lay out scores as a Markdown table, one row per forecaster, the best MSE marked."""
    best = min(row.mse for row in scores.values())
    lines = [
        "| model | MSE | MAE | RMSE (original units) | MAE (original units) | MASE |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in scores.items():
        mark = "**" if row.mse == best else ""
        lines.append(
            f"| {name} | {mark}{row.mse:.4f}{mark} | {row.mae:.4f} | {row.rmse_original:.4g} "
            f"| {row.mae_original:.4g} | {row.mase:.3f} |"
        )
    return "\n".join(lines)


def write(
    folder: Path,
    config: RunConfig,
    data: ForecastData,
    result: Mapping[str, Any],
    scores: Mapping[str, Scores],
    example: ForecastExample,
) -> None:
    """Write ``report.md`` and ``forecast.png`` into the run folder; on one rank only."""
    plots.save_run_figure(
        folder / "forecast.png", example, {name: row.mse_per_step for name, row in scores.items()}
    )
    number = next(iter(scores.values())).num_windows
    channels = data.channel_names[:MAX_CHANNELS_LISTED]
    names = list(scores)
    per_channel = [
        "| variate | " + " | ".join(names) + " |",
        "|---" * (len(names) + 1) + "|",
        *(
            f"| {channel} | "
            + " | ".join(f"{scores[name].mse_per_channel[index]:.4f}" for name in names)
            + " |"
            for index, channel in enumerate(channels)
        ),
    ]
    left_out = data.num_channels - len(channels)
    text = f"""# {config.name}

{data.series_set.name}, {config.data.seq_len} -> {config.data.pred_len} steps. Every one of the
{number} windows of the test split is scored once; MSE and MAE are of standardised values.
Time-LLM is the whole model; "ridge + retrieval" is what it starts from, where that is its anchor.

{table(scores)}

Best validation MSE {result["val_mse"]:.4f} at step {result["best_step"]} of {result["steps"]}
(ridge {result["ridge_val_mse"]:.4f}); training took {result["train_s"]} s on {result["ranks"]}
rank(s), {result["windows_per_s"]} windows/s, at most {result["peak_rss_gib"]} GiB per rank.

![One test window, and the error at each step](forecast.png)

## MSE per variate

{chr(10).join(per_channel)}
{f"and {left_out} more in result.json" if left_out else ""}

## Series

{data.series_set.description}
Checksum {data.series_set.checksum}.
{chr(10).join(f"* {note}" for note in data.series_set.notes)}
"""
    write_text(folder / "report.md", text)


def collect_example(
    forecast: Forecast, ridge: AnchorFit, data: ForecastData, prompt_builder: PromptBuilder | None
) -> ForecastExample:
    """Forecast the middle window of the test split, for the picture; collective."""
    windows = data.windows["test"]
    window = len(windows) // 2
    batch = Collator(windows, prompt_builder)([window]).to(distributed.device())
    with torch.no_grad():
        forecasts = {"Time-LLM": forecast(batch), "ridge": ridge_forecast(ridge)(batch)}
    number, start = windows.locate(window)
    scaler, series = data.scalers[number], data.series_set.series[number]
    end = start + windows.seq_len + windows.pred_len

    def original(values: torch.Tensor) -> np.ndarray:
        return np.asarray(scaler.inverse(values[0].double().cpu().numpy()))

    return ForecastExample(
        dates=series.dates[start:end],
        history=original(batch.context),
        truth=original(batch.target),
        forecasts={name: original(values) for name, values in forecasts.items()},
        columns=data.channel_names[:] if len(data.scalers) == 1 else (series.id,),
    )
