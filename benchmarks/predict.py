"""How much faster one call of ``predict`` is than a call for each series.

``python -m benchmarks.predict`` trains two small runs on 1000 hourly series, one with a memory and
one without, on the embedded backbone, and forecasts the newest window of every series: in one
call, and one by one. The last line is JSON: ``speedup`` is the smaller of the two ratios. One by
one is measured on a sample of the series, spread evenly, and scaled up. ``--quick`` takes fewer
series and a random language model of two narrow layers.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import yaml

from benchmarks.random_gpt2 import write_random_gpt2
from model import TimeLLM

SEQ_LEN, PRED_LEN = 96, 24
ROWS = 200
TOLERANCE = 1e-5


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Seconds, and how far the two ways differ."""

    together_s: float
    one_by_one_s: float
    difference: float
    """Largest, relative to the spread of the forecasts."""

    @property
    def speedup(self) -> float:
        """One by one over together."""
        return self.one_by_one_s / self.together_s


def make_series(count: int) -> pd.DataFrame:
    """Hourly series with a daily cycle of their own height and phase, as a long frame."""
    rng = np.random.default_rng(0)
    hours = np.arange(ROWS)
    phase, height = rng.uniform(0, 2 * np.pi, (count, 1)), rng.uniform(1, 9, (count, 1))
    values = height * (2 + np.sin(2 * np.pi * hours / 24 + phase)) + rng.normal(size=(count, ROWS))
    return pd.DataFrame(
        {
            "unique_id": np.repeat([f"series-{number:04d}" for number in range(count)], ROWS),
            "ds": np.tile(pd.date_range("2024-01-01", periods=ROWS, freq="h"), count),
            "y": values.ravel(),
        }
    )


def train(folder: Path, data: Path, backbone: str, prompt: str, *, use_memory: bool) -> Path:
    """Train a few steps in a process of its own; returns the folder of the run."""
    name = "memory" if use_memory else "plain"
    config = {
        "name": name,
        "runs_dir": str(folder / "runs"),
        "data": {"path": str(data), "seq_len": SEQ_LEN, "pred_len": PRED_LEN, "num_workers": 0,
                 "splits": [0.76, 0.12, 0.12]},
        # Without an anchor the forecast is the language model's, also after few steps.
        "model": {"anchor": "none", "patch_len": 16, "stride": 16, "num_prototypes": 100,
                  "d_ff": 32, "prompt": prompt},
        "backbone": {"name": backbone, "llm_layers": 2},
        "tapr": {"use_tapr": True},
        "gram": {"use_gram": use_memory, "retrieval_key": "anchored"},
        "bank": {"bank_stride": 4, "index": "flat"},
        "train": {"max_steps": 2, "batch_size": 8, "precision": "fp32", "eval_every": 2,
                  "eval_batch_size": 512},
    }  # fmt: skip
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(config))
    subprocess.run(
        [sys.executable, "-m", "dist_train.cli", "train", "--config", str(file)], check=True,
        stdout=sys.stderr,
    )  # fmt: skip
    return folder / "runs" / name


def measure(model: TimeLLM, frame: pd.DataFrame, sample: int) -> Measured:
    """Forecast all series in one call, and some of them one by one."""
    ids = frame["unique_id"].unique()
    chosen = ids[np.unique(np.linspace(0, len(ids) - 1, sample).astype(int))]
    parts = {id_: frame[frame["unique_id"] == id_] for id_ in chosen}
    model.predict(frame, level=[])  # the first call of anything prepares more than it will again
    model.predict(parts[chosen[0]], level=[])
    together_s, single_s = [], []
    for _ in range(3):
        started = time.perf_counter()
        together = model.predict(frame, level=[])
        together_s.append(time.perf_counter() - started)
    singles = []
    for part in parts.values():
        started = time.perf_counter()
        singles.append(model.predict(part, level=[]))
        single_s.append(time.perf_counter() - started)
    same = together[together["unique_id"].isin(chosen)]["TimeLLM"].to_numpy()
    alone = pd.concat(singles)["TimeLLM"].to_numpy()
    return Measured(
        together_s=float(np.median(together_s)),
        one_by_one_s=float(np.mean(single_s)) * len(ids),
        difference=float(np.abs(same - alone).max() / same.std()),
    )


def main() -> int:
    """Measure, print a table and the line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--series", type=int)
    parser.add_argument("--sample", type=int, help="series that are forecast one by one")
    parser.add_argument("--prompt", choices=["none", "stats_only"], default="none")
    options = parser.parse_args()
    count = options.series or (200 if options.quick else 1000)
    sample = min(count, options.sample or (20 if options.quick else 100))
    result: dict[str, float | int | str] = {}
    with tempfile.TemporaryDirectory() as name:
        folder, frame = Path(name), make_series(count)
        frame.to_csv(folder / "series.csv", index=False)
        backbone = "smollm2-135m"
        if options.quick:
            backbone = str(folder / "gpt2")
            write_random_gpt2(
                folder / "gpt2", width=64, layers=2, heads=4, vocab_size=1200,
                text="min value max value median value the trend of input top lags",
            )  # fmt: skip
        for use_memory in (False, True):
            run = train(
                folder, folder / "series.csv", backbone, options.prompt, use_memory=use_memory
            )
            measured = measure(TimeLLM.from_pretrained(run), frame, sample)
            label = "memory" if use_memory else "plain"
            print(
                f"{label}: {count} series in one call {measured.together_s:.2f} s, one by one "
                f"{measured.one_by_one_s:.2f} s ({sample} of them measured): "
                f"{measured.speedup:.1f} times; difference {measured.difference:.1e}"
            )
            assert measured.difference < TOLERANCE, "the two ways must agree"
            result |= {
                f"speedup_{label}": round(measured.speedup, 1),
                f"together_s_{label}": round(measured.together_s, 3),
                f"difference_{label}": measured.difference,
            }
    result["speedup"] = min(v for k, v in result.items() if k.startswith("speedup_"))
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    print(json.dumps(result | {"series": count, "prompt": options.prompt, "device": device}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
