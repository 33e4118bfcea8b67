"""One model for many data sets, and what it knows of one that it has seen little of, or nothing.

``python -m benchmarks.transfer``. Five data sets, every variate a series of its own; ``--quick``
takes three small made ones in their place.

* ``joint``: trained on all five at once, beside five models that are trained on one each, by as
  many steps as the joint one has for each set.
* ``held_out``: each set held out in turn: trained on the others, and on the oldest 0, 5, 10 or
  100 % of the windows of that one, twice each: without its history in the memory, and with it.

``--parts``, ``--sets``, ``--targets`` and ``--percents`` name some of them; with ``--features N``
the ridge that a model starts from may follow the day and read N random features; the ridges beside
it stay plain. The last line is JSON.
``joint``: for each ``target`` the test ``mse`` of the joint model, ``alone_mse``, ``ridge_mse``,
``ridge_of_all_mse`` (one ridge of all sets), ``seasonal_naive_mse``. ``rows``, of what is held out:

* ``target``, ``percent``, ``memory``: which set is held out, how much of it is trained on, and
  whether the memory holds its training rows (own) or those of the other sets alone (others).
* ``mse``: of the model on all test windows of the target; ``ridge_mse``: of the ridge fitted to
  the same share of the target (none at 0 %); ``ridge_of_all_mse``: of one ridge of all windows
  that were trained on; ``seasonal_naive_mse``.
* ``windows_seen``, ``entries_seen``: training windows and memory entries of the target.
* ``late``, the leak itself: of the histories retrieved for a sample of the target's test windows,
  those that end after the window begins; must be 0. ``retrieved``: how many there were.

A set that holds the same thing as the target (ETTm1 is ETTh1 four times an hour) is left out there.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from benchmarks.random_gpt2 import write_random_gpt2
from benchmarks.retrieval_leak import commit
from benchmarks.rounding import decimals
from dist_train.baselines import SOURCE_WINDOWS
from dist_train.data.collate import Collator
from dist_train.loading import load_run
from dist_train.retrieval import Retriever

DATASETS = ("ETTh1", "ETTm1", "weather", "exchange_rate", "vic_elec")
PARTS = ("joint", "held_out")
ALIKE = 1000.0
"""A temperature at which every source is drawn as often."""
PERCENTS, QUICK_PERCENTS = (0, 5, 10, 100), (0, 100)
MEMORIES = ("others", "own")
TWINS = {"ETTh1": "ETTm1", "ETTm1": "ETTh1"}
"""Sets that hold the same thing."""
SAMPLE = 256
"""Test windows whose histories are looked at."""
MOSTLY_TRAINED = [0.96, 0.02, 0.02]
"""Splits of the sets that are trained on and not asked about."""
STEPS, QUICK_STEPS = 60, 4
"""Of a training on one set; the joint one makes as many for each."""

SETTINGS: dict[str, Any] = {
    "data": {"seq_len": 336, "pred_len": 96, "val_stride": 16, "temperature": 2.0},
    "model": {
        "patch_len": 32, "stride": 32, "num_prototypes": 100, "prompt": "none",
        "anchor": "ridge_retrieval",
    },
    "backbone": {"name": "smollm2-135m", "llm_layers": 2},
    "tapr": {"use_tapr": False},
    "gram": {"use_gram": True, "retrieval_key": "anchored", "top_k": 20},
    "bank": {"bank_stride": 32},
    "train": {
        "batch_size": 64, "max_steps": STEPS, "eval_every": STEPS // 2, "warmup_steps": 20,
        "eval_batch_size": 256,
    },
    "checkpoint": {"save_steps": 0},
    "tracking": {"wandb_mode": "disabled"},
}  # fmt: skip


def configure(
    sources: Sequence[dict[str, Any]], target: int, percent: int, memory: str
) -> list[dict[str, Any]]:
    """Entries of ``data.sources``: the one held out first, then all that are trained on."""
    own = {"percent": percent, "memory_percent": 100 * (memory == "own")}
    twin = TWINS.get(sources[target].get("dataset", ""))
    others = [
        source | {"splits": MOSTLY_TRAINED}
        for number, source in enumerate(sources)
        if number != target and (twin is None or source.get("dataset") != twin)
    ]
    return [sources[target] | own, *others]


def train(folder: Path, settings: dict[str, Any], entries: list[dict[str, Any]]) -> dict[str, Any]:
    """Train on some sources and score them; returns ``result.json``.

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
    result: dict[str, Any] = json.loads((folder / "runs/transfer/result.json").read_text())
    return result


def joint(
    folder: Path, settings: dict[str, Any], sources: dict[str, dict[str, Any]]
) -> list[dict[str, Any]]:
    """Train on all sets at once, and on each alone; a row for each set."""
    more = {key: settings["train"][key] * len(sources) for key in ("max_steps", "eval_every")}
    longer = settings | {
        "train": settings["train"] | more,
        "data": settings["data"] | {"temperature": ALIKE},
    }
    together = train(_made(folder / "joint"), longer, list(sources.values()))
    rows = []
    for name, entry in sources.items():
        alone = train(_made(folder / name), settings, [entry])
        scores = together["sources"][name]
        row = {
            "target": name,
            "mse": scores["Time-LLM"]["mse"],
            "alone_mse": alone["test_mse"],
            "ridge_mse": scores["ridge"]["mse"],
            "ridge_of_all_mse": scores["ridge of all"]["mse"],
            "seasonal_naive_mse": scores["seasonal naive"]["mse"],
            "best_step": together["best_step"],
            "alone_best_step": alone["best_step"],
            "total_s": together["total_s"],
            "alone_total_s": alone["total_s"],
        }
        rows.append(decimals(row, 6))
        print(json.dumps(rows[-1]), flush=True)
    return rows


def held_out(
    folder: Path, settings: dict[str, Any], entries: list[dict[str, Any]]
) -> dict[str, Any]:
    """Train and score with the first source held out; returns what the row says of it."""
    result = train(_made(folder), settings, entries)
    trained = load_run(folder / "runs/transfer")
    assert trained.retriever is not None
    data = trained.retriever.data
    rows = result["sources"][data.sources[0].name]
    late, retrieved = count_late(trained.retriever)
    return decimals(
        {
            "mse": rows["Time-LLM"]["mse"],
            "ridge_mse": rows["ridge"]["mse"] if entries[0]["percent"] else None,
            "ridge_of_all_mse": rows["ridge of all"]["mse"],
            "seasonal_naive_mse": rows["seasonal naive"]["mse"],
            "windows_seen": int(data.mixture(1.0).counts[0]),
            "entries_seen": _entries(trained.retriever),
            "late": late,
            "retrieved": retrieved,
            "best_step": result["best_step"],
            "total_s": result["total_s"],
        },
        6,
    )


def count_late(retriever: Retriever) -> tuple[int, int]:
    """Look at what test windows of the first source retrieve, by the time stamps of the files.

    Returns:
        Histories that end after the window that they were found for begins; and all of them.
    """
    data, windows = retriever.data, retriever.data.windows["test"]
    ids = windows.even_sample(SAMPLE, data.series_of_sources[0])
    batch = Collator(windows, None)(ids.tolist())
    series_MK, starts_MK, _ = retriever.bank.places(retriever.search_batch(batch, "test").ids)
    dates = [one.dates for one in data.series_set.series]
    late = retrieved = 0
    for row, (number, start) in enumerate(zip(*windows.locate_batch(ids), strict=True)):
        for found, first in zip(series_MK[row].tolist(), starts_MK[row].tolist(), strict=True):
            if found >= 0:
                last = first + windows.seq_len + windows.pred_len - 1
                late += bool(dates[found][last] >= dates[number][start])
                retrieved += 1
    return late, retrieved


def _entries(retriever: Retriever) -> int:
    """Entries of the first source in the memory."""
    series, _, _ = retriever.bank.places(retriever.bank.ids)
    return int((series < int(retriever.data.first_series[1])).sum())


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
        "train": SETTINGS["train"] | {"max_steps": QUICK_STEPS, "eval_every": 2, "batch_size": 16},
    }
    return sources, settings


def main(argv: Sequence[str] | None = None) -> None:
    """Run all rows and print them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.transfer", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="Small made series.")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--sets", nargs="+", choices=DATASETS, default=DATASETS)
    parser.add_argument("--targets", nargs="+", help="Names of the sets held out; default all.")
    parser.add_argument("--percents", nargs="+", type=int, help="Shares trained on, in percent.")
    parser.add_argument("--features", type=int, default=0, help="Random features of each ridge.")
    options = parser.parse_args(argv)
    found: dict[str, Any] = {"rows": [], "joint": []}
    with tempfile.TemporaryDirectory(prefix="timellm-transfer-") as name:
        folder = Path(name)
        sources: list[dict[str, Any]] = [{"dataset": dataset} for dataset in options.sets]
        settings, percents = SETTINGS, options.percents or PERCENTS
        if options.quick:
            sources, settings = write_quick(folder)
            percents = options.percents or QUICK_PERCENTS
        if options.features:
            more = {"anchor_calendar": "day", "anchor_random_features": options.features}
            settings = settings | {
                "model": settings["model"] | more | {"anchor_rows": SOURCE_WINDOWS}
            }
        names = [Path(one["path"]).stem if "path" in one else one["dataset"] for one in sources]
        if "joint" in options.parts:
            found["joint"] = joint(folder, settings, dict(zip(names, sources, strict=True)))
        wanted = (options.targets or names) if "held_out" in options.parts else ()
        for target, percent, memory in product(map(names.index, wanted), percents, MEMORIES):
            own = folder / f"{names[target]}-{percent}-{memory}"
            row = {"target": names[target], "percent": percent, "memory": memory}
            row |= held_out(own, settings, configure(sources, target, percent, memory))
            print(json.dumps(row), flush=True)
            found["rows"].append(row)
    print(json.dumps(found | {"quick": options.quick, "commit": commit()}))


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


if __name__ == "__main__":
    main()
