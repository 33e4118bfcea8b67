"""``report.md`` of a run: scores, intervals, cost, and the figures beside them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dist_train import coverage
from dist_train.config import RunConfig
from dist_train.conformal import Calibration
from dist_train.coverage import Coverage
from dist_train.data.windows import ForecastData
from dist_train.figures.cost import save_cost_figure
from dist_train.figures.coverage import save_coverage_figure
from dist_train.figures.errors import save_error_figure
from dist_train.figures.forecast import ForecastExample
from dist_train.figures.losses import save_loss_figure
from dist_train.figures.run import save_run_figure
from dist_train.figures.samples import ForecastSample, save_sample_figure
from dist_train.metrics import Scores
from dist_train.score_table import table, table_of_sources
from dist_train.tracking import FILE as METRICS_FILE
from memory_index.atomic_file import write_text

REPORT_FILE = "report.md"
FIGURE_FILE = "forecast.png"
FIGURES = "figures"
FILES = (REPORT_FILE, FIGURE_FILE, FIGURES)
"""What :func:`write` leaves in the run's folder."""
MAX_CHANNELS_LISTED = 32


@dataclass(frozen=True, kw_only=True)
class RunReport:
    """All that a report tells of a run on the test split."""

    config: RunConfig
    data: ForecastData

    result: Mapping[str, Any]
    """What ``result.json`` holds."""

    scores: Mapping[str, Scores]
    """By forecaster, the model first."""

    example: ForecastExample
    """The window of ``forecast.png``."""

    samples: Sequence[ForecastSample] = ()
    """Windows with intervals and neighbours."""

    measured: Sequence[Coverage] = ()
    """What intervals cover, by level; empty where there are none."""

    calibration: Calibration | None = None
    """How they are made."""

    by_source: Mapping[str, Mapping[str, Scores]] = field(default_factory=dict)
    """The scores of each source, by its name; empty where there is one."""


def write(folder: Path, report: RunReport) -> None:
    """Write ``report.md``, ``forecast.png`` and ``figures/`` into a run folder; on one rank."""
    drawn = draw_figures(folder, report)
    write_text(folder / REPORT_FILE, _text(report, drawn))


def draw_figures(folder: Path, report: RunReport) -> dict[str, str]:
    """Draw all figures of a run.

    Returns:
        By the figure's path in the run folder, what it shows.
    """
    scores, names, result = report.scores, report.data.channel_names, report.result
    save_run_figure(
        folder / FIGURE_FILE,
        report.example,
        {name: row.mse_per_step for name, row in scores.items()},
    )
    figures = folder / FIGURES
    figures.mkdir(exist_ok=True)
    drawn = {FIGURE_FILE: "One test window, and the error at each step"}
    save_loss_figure(
        figures / "losses.png", folder / METRICS_FILE,
        best_step=result["best_step"], ridge_val_mse=result["ridge_val_mse"],
    )  # fmt: skip
    drawn[f"{FIGURES}/losses.png"] = "Loss terms in training, and the error on validation"
    save_error_figure(figures / "errors.png", scores, names)
    drawn[f"{FIGURES}/errors.png"] = "Error at each step and of each variate"
    if report.samples:
        save_sample_figure(figures / "samples.png", report.samples)
        drawn[f"{FIGURES}/samples.png"] = "Test windows with intervals, and what was retrieved"
    if report.measured:
        save_coverage_figure(figures / "coverage.png", report.measured, names)
        drawn[f"{FIGURES}/coverage.png"] = "What intervals promise, and what they cover"
    save_cost_figure(
        figures / "cost.png", result.get("seconds", {}), result.get("gib", {}), _cost_line(result)
    )
    drawn[f"{FIGURES}/cost.png"] = "Seconds and memory by part, on the main rank"
    return drawn


def _text(report: RunReport, drawn: Mapping[str, str]) -> str:
    config, data, result = report.config, report.data, report.result
    number = next(iter(report.scores.values())).num_windows
    pictures = "\n\n".join(f"![{title}]({path})" for path, title in drawn.items())
    return f"""# {config.name}

{data.series_set.name}, {config.data.seq_len} -> {config.data.told_horizon} steps. Every one of the
{number} windows of the test split is scored once; MSE and MAE are of standardised values.
Time-LLM is the whole model; a ridge that is more than "ridge" is what it starts from.

{table(report.scores)}
{_sources(report)}
Best validation MSE {result["val_mse"]:.4f} at step {result["best_step"]} of {result["steps"]}
(ridge {result["ridge_val_mse"]:.4f}); training took {result["train_s"]} s on {result["ranks"]}
rank(s), {result["windows_per_s"]} windows/s, at most {result["peak_rss_gib"]} GiB per rank.

{_intervals(report)}
{pictures}

## MSE per variate

{_variates(report)}

## Series

{data.series_set.description}
Checksum {data.series_set.checksum}.
{chr(10).join(f"* {note}" for note in data.series_set.notes)}
"""


def _sources(report: RunReport) -> str:
    return f"\n{table_of_sources(report.by_source)}\n" if report.by_source else ""


def _intervals(report: RunReport) -> str:
    if not report.measured or report.calibration is None:
        return ""
    facts = report.calibration.facts
    return f"""## Intervals

Made by {facts["method"]}, from {facts["windows_forecast"]} of the {facts["windows_of_split"]}
windows of validation; measured on every window of test. The worst variate and step are those
farthest from the level. Width and interval score are of standardised values.

{coverage.table(report.measured, "test")}

## Figures
"""


def _variates(report: RunReport) -> str:
    scores, names = report.scores, list(report.scores)
    channels = report.data.channel_names[:MAX_CHANNELS_LISTED]
    levels = coverage.told(report.measured)
    lines = [
        "| variate | "
        + " | ".join([*names, *(f"{one.level:g} % covers" for one in levels)])
        + " |",
        "|---" * (len(names) + len(levels) + 1) + "|",
    ]
    for index, channel in enumerate(channels):
        cells = [f"{scores[name].mse_per_channel[index]:.4f}" for name in names]
        cells += [f"{one.per_channel[index]:.1f} %" for one in levels]
        lines.append(f"| {channel} | " + " | ".join(cells) + " |")
    left_out = report.data.num_channels - len(channels)
    if left_out:
        lines.append(f"\nand {left_out} more in result.json")
    return "\n".join(lines)


def _cost_line(result: Mapping[str, Any]) -> str:
    parts = [
        f"{result['ranks']} rank(s), {result['windows_per_s']} training windows/s, at most "
        f"{result['peak_rss_gib']} GiB per rank"
    ]
    if "trained_parameters" in result:
        parts.append(
            f"{result['trained_parameters']:,} trained and {result['frozen_parameters']:,} frozen "
            "parameters"
        )
    return "\n".join(parts)
