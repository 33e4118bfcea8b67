"""What a model knows of a data set that it has seen little of, or nothing.

``python -m benchmarks.transfer`` holds each of five data sets out in turn: trained on the four
others, and on the oldest 0, 5, 10 or 100 % of the windows of that one, twice each: without its
history in the memory, and with it. ``--quick`` takes three small made series in their place. The
last line is JSON: ``rows``, each with

* ``target``, ``percent``, ``memory``: which set is held out, how much of it is trained on, and
  whether the memory holds its training rows (own) or those of the other sets alone (others).
* ``mse``: of the model on all test windows of the target; ``ridge_mse``: of the ridge fitted to
  the same share of the target (none at 0 %); ``ridge_of_all_mse``: of one ridge of all windows
  that were trained on; ``seasonal_naive_mse``.
* ``windows_seen``, ``entries_seen``: training windows and memory entries of the target.
  ``overlaps``: retrieved windows of a sample that overlap their query in time, the leak itself.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from benchmarks.random_gpt2 import write_random_gpt2
from dist_train.config import load_run_config
from dist_train.data.lengths import num_windows
from dist_train.data.windows import ForecastData, load_forecast_data

DATASETS = ("ETTh1", "ETTm1", "weather", "exchange_rate", "vic_elec")
PERCENTS, QUICK_PERCENTS = (0, 5, 10, 100), (0, 100)
MEMORIES = ("others", "own")
MOSTLY_TRAINED = [0.9, 0.05, 0.05]
"""Splits of the sets that are trained on and not asked about."""

SETTINGS: dict[str, Any] = {
    "data": {"seq_len": 336, "pred_len": 96, "val_stride": 16, "temperature": 2.0},
    "model": {
        "patch_len": 32, "stride": 32, "num_prototypes": 100, "prompt": "none",
        "anchor": "ridge_retrieval",
    },
    "backbone": {"name": "smollm2-135m", "llm_layers": 2},
    "tapr": {"use_tapr": False},
    "gram": {"use_gram": True, "retrieval_key": "anchored", "top_k": 20},
    "bank": {"bank_stride": 8},
    "train": {
        "batch_size": 64, "max_steps": 60, "eval_every": 30, "warmup_steps": 20,
        "eval_batch_size": 256,
    },
    "checkpoint": {"save_steps": 0},
    "tracking": {"wandb_mode": "disabled"},
}  # fmt: skip


def configure(
    sources: Sequence[dict[str, Any]], target: int, percent: int, memory: str
) -> list[dict[str, Any]]:
    """Entries of ``data.sources``: one held out, all others trained on."""
    entries = []
    for number, source in enumerate(sources):
        part: dict[str, Any] = {"splits": MOSTLY_TRAINED}
        if number == target:
            part = {"percent": percent, "memory_percent": 100 * (memory == "own")}
        entries.append(source | part)
    return entries


def run(
    folder: Path, settings: dict[str, Any], entries: list[dict[str, Any]], target: int
) -> dict[str, Any]:
    """Train and score; returns what the row says of the target.

    Raises:
        subprocess.CalledProcessError: The training failed, see its words above.
    """
    content = settings | {
        "name": "transfer",
        "runs_dir": str(folder / "runs"),
        "data": settings["data"] | {"sources": entries},
    }
    file = folder / "transfer.yaml"
    file.write_text(yaml.safe_dump(content))
    command = [sys.executable, "-m", "dist_train.cli", "train", "--config", str(file), "--quiet"]
    subprocess.run(command, check=True)
    data = load_forecast_data(load_run_config(file).data)
    result = json.loads((folder / "runs/transfer/result.json").read_text())
    rows = result["sources"][data.sources[target].name]
    lines = (folder / "runs/transfer/metrics.jsonl").read_text().splitlines()
    overlaps = [json.loads(line).get("retrieval/overlaps") for line in lines]
    return {
        "mse": round(rows["Time-LLM"]["mse"], 6),
        "ridge_mse": round(rows["ridge"]["mse"], 6) if entries[target]["percent"] else None,
        "ridge_of_all_mse": round(rows["ridge of all"]["mse"], 6),
        "seasonal_naive_mse": round(rows["seasonal naive"]["mse"], 6),
        "windows_seen": int(data.mixture(1.0).counts[target]),
        "entries_seen": _entries(data, target, settings["bank"]["bank_stride"]),
        "overlaps": next(int(one) for one in overlaps if one is not None),
        "best_step": result["best_step"],
        "total_s": result["total_s"],
    }


def _entries(data: ForecastData, source: int, stride: int) -> int:
    windows, part = data.windows["train"], data.only(source)
    return part.num_variates * sum(
        num_windows(end - begin, windows.seq_len, windows.pred_len, False, stride)
        for begin, end in part.memory_rows
    )


def write_quick(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Three made series of other frequencies, and settings for a random language model."""
    sources = []
    for number, (name, frequency) in enumerate(
        (("hours", "h"), ("quarters", "15min"), ("days", "D"))
    ):
        rng = np.random.default_rng(number)
        steps = np.arange(1200)[:, None]
        values = np.sin(2 * np.pi * steps / (24, 12, 7)[number] + np.arange(2))
        frame = pd.DataFrame(values + 0.3 * rng.normal(size=values.shape), columns=["a", "b"])
        frame.insert(0, "date", pd.date_range("2020-01-01", periods=len(frame), freq=frequency))
        frame.to_csv(folder / f"{name}.csv", index=False)
        sources.append({"path": str(folder / f"{name}.csv")})
    write_random_gpt2(folder / "gpt2", width=64, layers=2, heads=4, vocab_size=1200, text="")
    settings = SETTINGS | {
        "data": SETTINGS["data"] | {"seq_len": 48, "pred_len": 12},
        "model": SETTINGS["model"] | {"patch_len": 8, "stride": 8, "d_ff": 16, "d_model": 16},
        "backbone": {"name": str(folder / "gpt2"), "llm_layers": 2},
        "train": SETTINGS["train"] | {"max_steps": 4, "eval_every": 2, "batch_size": 16},
    }
    return sources, settings


def main(argv: Sequence[str] | None = None) -> None:
    """Run all rows and print them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.transfer", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="Small made series.")
    parser.add_argument("--targets", nargs="+", help="Names of the sets held out; default all.")
    parser.add_argument("--percents", nargs="+", type=int, help="Shares trained on, in percent.")
    options = parser.parse_args(argv)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sources: list[dict[str, Any]] = [{"dataset": dataset} for dataset in DATASETS]
        settings, percents = SETTINGS, options.percents or PERCENTS
        if options.quick:
            sources, settings = write_quick(folder)
            percents = options.percents or QUICK_PERCENTS
        names = [Path(one["path"]).stem if "path" in one else one["dataset"] for one in sources]
        for target in [names.index(one) for one in options.targets or names]:
            for percent in percents:
                for memory in MEMORIES:
                    own = folder / f"{names[target]}-{percent}-{memory}"
                    own.mkdir()
                    row = {"target": names[target], "percent": percent, "memory": memory}
                    row |= run(own, settings, configure(sources, target, percent, memory), target)
                    print(json.dumps(row), flush=True)
                    rows.append(row)
    print(json.dumps({"rows": rows}))


if __name__ == "__main__":
    main()
