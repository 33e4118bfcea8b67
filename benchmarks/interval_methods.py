"""Which spread should errors be divided by? Compared on train and validation alone.

    python -m benchmarks.interval_methods                # vic_elec
    TIMELLM_DATA_ROOT=... python -m benchmarks.interval_methods --datasets vic_elec weather ETTh1

Three folds in time order, each inside the rows of train and validation: a ridge is fitted on the
oldest 40, 50 or 65 %, calibrated on the next 12.5 %, and its intervals are measured on the 25 % (or
what is left) after them. The test split is never read. The last line is JSON.

Shape legend (this file):
    W  windows   H  steps, every fourth   N  variates   L  seq_len
"""

import argparse
import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dist_train.baselines import fit_ridge, ridge_forecast
from dist_train.conformal import bounds_of
from dist_train.data.collate import Collator
from dist_train.data.config import DataConfig
from dist_train.data.series import load_series
from dist_train.data.windows import ForecastData, build_forecast_data, load_forecast_data
from model.instance_norm import VARIANCE_FLOOR

HORIZONS = {"vic_elec": 48}
SEQ_LEN, OTHER_HORIZON = 336, 96
FOLDS = (0.4, 0.5, 0.65)
LEVELS = (80, 95)
STRIDE = 2  # windows
EVERY = 4  # steps
BATCH = 512


@dataclass(frozen=True)
class Errors:
    """Errors of the ridge on consecutive windows."""

    errors: np.ndarray
    """Truth minus forecast. Shape (W, H, N)."""

    variance: np.ndarray
    """Of the windows. Shape (W, N)."""

    changes: np.ndarray
    """Variance of the windows' steps. Shape (W, N)."""


Spread = Callable[[Errors, Errors], np.ndarray]
"""Of the first windows' errors, typical values taken from the second. Shape (W, N)."""


def floored(share: float) -> Spread:
    """The window's deviation, with a share of the typical one added in squares."""

    def spread(windows: Errors, calibration: Errors) -> np.ndarray:
        floor_N = share**2 * np.median(calibration.variance, axis=0) + VARIANCE_FLOOR
        return np.asarray(np.sqrt(windows.variance + floor_N))

    return spread


def of_changes(windows: Errors, calibration: Errors) -> np.ndarray:
    """As :func:`floored` with .5, of the changes from step to step."""
    floor_N = 0.25 * np.median(calibration.changes, axis=0) + VARIANCE_FLOOR
    return np.asarray(np.sqrt(windows.changes + floor_N))


def plain(windows: Errors, calibration: Errors) -> np.ndarray:
    """No spread: every window's errors are taken to be alike."""
    return np.ones_like(windows.variance)


SPREADS: dict[str, Spread] = {
    "none": plain,
    **{f"window, floor {share:g}": floored(share) for share in (0.01, 0.1, 0.25, 0.5, 1)},
    "changes, floor 0.5": of_changes,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a table, and one JSON line last."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--datasets", nargs="+", default=["vic_elec"])
    results: dict[str, Any] = {}
    print("| data | spread | level | covered, by fold | largest gap | interval score |")
    print("|---|---|---|---|---|---|")
    for name in parser.parse_args(argv).datasets:
        folds = [errors_of(data) for data in folds_of(name)]
        for spread_name, spread in SPREADS.items():
            for level in LEVELS:
                rows = [measure(*fold, spread, level) for fold in folds]
                covered = [round(share, 2) for share, _ in rows]
                score = round(float(np.mean([score for _, score in rows])), 4)
                gap = max(abs(share - level) for share in covered)
                told = ", ".join(f"{share:.1f}" for share in covered)
                print(f"| {name} | {spread_name} | {level} % | {told} | {gap:.1f} | {score:.3f} |")
                results[f"{name}/{spread_name}/{level}"] = {
                    "covered": covered, "interval_score": score,
                }  # fmt: skip
    print(json.dumps(results))
    return 0


def folds_of(name: str) -> list[ForecastData]:
    """Cut the rows of train and validation anew, three times."""
    config = DataConfig(dataset=name, seq_len=SEQ_LEN, pred_len=HORIZONS.get(name, OTHER_HORIZON))
    series_set = load_series(config)
    known = load_forecast_data(config).split_rows[0]["val"][1]
    folds = []
    for share in FOLDS:
        train, calibration = int(known * share), int(known * 0.125)
        rest = min(int(known * 0.25), known - train - calibration)
        cut = dataclasses.replace(series_set, borders=(train, calibration, rest))
        folds.append(build_forecast_data(config, cut))
    return folds


def errors_of(data: ForecastData) -> tuple[Errors, Errors]:
    """Errors of the ridge on the windows to calibrate on, and on those to measure."""
    forecast = ridge_forecast(fit_ridge(data))
    parts = []
    for split in ("val", "test"):  # of the fold; both lie in train and validation
        windows = data.windows[split]
        collate = Collator(windows, None)
        ids = list(range(0, len(windows), STRIDE))
        batches = [collate(ids[first : first + BATCH]) for first in range(0, len(ids), BATCH)]
        parts.append(
            Errors(
                np.concatenate([(b.target - forecast(b)).numpy()[:, ::EVERY] for b in batches]),
                np.concatenate([b.context.numpy().var(axis=1) for b in batches]),
                np.concatenate([np.diff(b.context.numpy(), axis=1).var(axis=1) for b in batches]),
            )
        )
    return parts[0], parts[1]


def measure(calibration: Errors, later: Errors, spread: Spread, level: int) -> tuple[float, float]:
    """Share that is covered, in percent, and interval score."""
    scores = calibration.errors / spread(calibration, calibration)[:, None]
    (lower,), (upper,) = bounds_of(scores, [level])
    spread_W1N = spread(later, calibration)[:, None]
    low, high = lower * spread_W1N, upper * spread_W1N
    within = (later.errors >= low) & (later.errors <= high)
    outside = np.maximum(low - later.errors, 0) + np.maximum(later.errors - high, 0)
    score = high - low + 200 / (100 - level) * outside
    return 100 * float(within.mean()), float(score.mean())


if __name__ == "__main__":
    raise SystemExit(main())
