"""What a run ends with: scores beside each other, and how the training went."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dist_train.metrics import Scores


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


def table_of_sources(by_source: Mapping[str, Mapping[str, Scores]]) -> str:
    """Lay out the MSE of each source as a Markdown table, the best of each marked."""
    rows = list(next(iter(by_source.values())))
    lines = [
        "| MSE | " + " | ".join([*by_source, "mean"]) + " |",
        "|---" * (len(by_source) + 2) + "|",
    ]
    columns = [[scores[row].mse for row in rows] for scores in by_source.values()]
    columns.append([sum(values) / len(values) for values in zip(*columns, strict=True)])
    for number, row in enumerate(rows):
        marks = ["**" if column[number] == min(column) else "" for column in columns]
        cells = [
            f"{mark}{column[number]:.4f}{mark}" for mark, column in zip(marks, columns, strict=True)
        ]
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def table_rows(scores: Mapping[str, Scores]) -> tuple[list[str], list[list[str | float]]]:
    """Columns and rows of :func:`table`, as values."""
    columns = ["model", "MSE", "MAE", "RMSE (original units)", "MAE (original units)", "MASE"]
    rows: list[list[str | float]] = [
        [name, row.mse, row.mae, row.rmse_original, row.mae_original, row.mase]
        for name, row in scores.items()
    ]
    return columns, rows


def closing(report: Path, result: Mapping[str, Any]) -> list[str]:
    """Say how the training went and where its report is, in a few lines."""
    return [
        f"best validation mse {result['val_mse']:.4f} at step {result['best_step']} of "
        f"{result['steps']} (ridge {result['ridge_val_mse']:.4f}); training took "
        f"{result['train_s']} s, {result['windows_per_s']} windows/s, at most "
        f"{result['peak_rss_gib']} GiB per rank",
        f"report: {report}",
    ]
