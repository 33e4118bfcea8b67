"""What the intervals of trained runs cover on test, beside the same intervals around the ridge.

    python -m benchmarks.coverage                        # trains quickstart and, with its file
                                                         # in TIMELLM_DATA_ROOT, weather
    python -m benchmarks.coverage --runs runs/quickstart runs/weather
    python -m benchmarks.coverage --quick                # the ridge on vic_elec, some seconds

Calibrated on validation alone; every window of test counts. What a training has measured of its
own model is taken from its result.json; a run without that is evaluated. The last line is JSON.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dist_train import calibration
from dist_train.baselines import fit_ridge, ridge_forecast
from dist_train.config import load_saved_config
from dist_train.coverage import TOLD_LEVELS, CoverageSums
from dist_train.data.catalog import ROOT_VARIABLE
from dist_train.data.config import DataConfig
from dist_train.data.windows import ForecastData, load_forecast_data
from dist_train.evaluation import score_split
from dist_train.scoring import Evaluation, evaluate_run

ROOT = Path(__file__).parents[1]
CONFIGS = {"quickstart": "configs/quickstart.yaml", "weather": "configs/weather.yaml"}
BATCH = 256


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a table, and one JSON line last."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=Path, nargs="+", help="Folders of trained runs.")
    parser.add_argument("--quick", action="store_true", help="The ridge on vic_elec alone.")
    options = parser.parse_args(argv)
    if options.quick:
        data = load_forecast_data(DataConfig(dataset="vic_elec", seq_len=336, pred_len=48))
        results = {"vic_elec": {"ridge": of_ridge(data)}}
    else:
        results = {}
        with tempfile.TemporaryDirectory() as folder:
            for run in options.runs or train_all(Path(folder)):
                data = load_forecast_data(load_saved_config(run / "config.yaml").data)
                results[data.series_set.name] = {
                    "Time-LLM": of_model(run), "ridge": of_ridge(data),
                }  # fmt: skip
    print(table(results))
    print(json.dumps({name: _brief(rows) for name, rows in results.items()}))
    return 0


def train_all(folder: Path) -> list[Path]:
    """Train both runs; weather only where its file is."""
    runs = []
    for name, config in CONFIGS.items():
        if name == "weather" and not os.environ.get(ROOT_VARIABLE):
            sys.stderr.write(f"weather is left out: {ROOT_VARIABLE} names no folder with it\n")
            continue
        command = ["launch/local.sh", config, "--runs_dir", str(folder)]
        subprocess.run(command, cwd=ROOT, check=True, stdout=sys.stderr)
        runs.append(folder / name)
    return runs


def of_model(run: Path) -> list[dict[str, Any]]:
    """Coverage of a run's own intervals, as its training or an evaluation measured it."""
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    if not result.get("intervals"):
        evaluated = evaluate_run(Evaluation(run=run))
        assert evaluated is not None
        result = evaluated
    return list(result["intervals"])


def of_ridge(data: ForecastData) -> list[dict[str, Any]]:
    """Coverage of intervals made by the same method around the ridge."""
    forecast = ridge_forecast(fit_ridge(data))
    known = calibration.calibrate(forecast, data, batch_size=BATCH)
    counted = CoverageSums(known, data, "test")
    score_split({"ridge": forecast}, data, "test", batch_size=BATCH, observers=[counted])
    return [asdict(one) for one in counted.finish()]


def table(results: dict[str, dict[str, list[dict[str, Any]]]]) -> str:
    """Lay out what was measured as Markdown."""
    lines = [
        "| data | forecaster | level | covered | variates | steps | width | interval score |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, forecasters in results.items():
        for forecaster, rows in forecasters.items():
            for row in _told(rows):
                spans = [
                    f"{min(row[key]):.1f} to {max(row[key]):.1f}"
                    for key in ("per_channel", "per_step")
                ]
                lines.append(
                    f"| {name} | {forecaster} | {row['level']:g} % | {row['covered']:.2f} % | "
                    f"{spans[0]} | {spans[1]} | {row['width']:.4f} | {row['interval_score']:.4f} |"
                )
    return "\n".join(lines)


def _told(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if row["level"] in TOLD_LEVELS]


def _brief(forecasters: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    brief: dict[str, Any] = {}
    for forecaster, rows in forecasters.items():
        key = "" if forecaster == "Time-LLM" else "_ridge"
        for row in _told(rows):
            level = f"{row['level']:g}"
            brief[f"coverage_{level}{key}"] = round(row["covered"], 2)
            brief[f"width_{level}{key}"] = round(row["width"], 4)
            brief[f"interval_score_{level}{key}"] = round(row["interval_score"], 4)
    return brief


if __name__ == "__main__":
    raise SystemExit(main())
