"""Scores beside each other, as a Markdown table."""

from collections.abc import Mapping

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
