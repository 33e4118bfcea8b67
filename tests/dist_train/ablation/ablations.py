"""An ablation whose cells are written by hand: what reading and comparing needs of a run."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from dist_train.ablation.cells import Cell, Plan, make_plan
from dist_train.ablation.grid import Grid, Row
from dist_train.config import RunConfig, config_to_yaml
from memory_index.atomic_file import write_tensors
from model.config import GramConfig, TaprConfig
from tests.helpers.runs import tiny_run

WINDOWS = 240
ROWS = (
    Row(name="first", keys=("--tapr.use_tapr=false",)),
    Row(name="other", keys=("--tapr.use_tapr=true",)),
)


def base_run(folder: Path, **changes: object) -> Path:
    """Write the configuration of a tiny run without a memory; returns its file."""
    settings: dict[str, object] = {
        "gram": GramConfig(use_gram=False), "tapr": TaprConfig(use_tapr=False), "name": "tiny",
    }  # fmt: skip
    run = tiny_run(folder, **(settings | changes))
    path = folder / f"{run.name}.yaml"
    path.write_text(config_to_yaml(run))
    return path


def plan_of(
    file: Path,
    rows: Sequence[Row] = ROWS,
    seeds: int = 3,
    baselines: Sequence[tuple[str, ...]] = (),
    more: Sequence[str] = (),
    learning_rates: Sequence[float] = (),
) -> Plan:
    """Plan a grid over a configuration file."""
    grid = Grid(name="own", rows=tuple(rows))
    return make_plan(
        str(file), more, grid,
        num_seeds=seeds, baselines=baselines, learning_rates=learning_rates,
    )  # fmt: skip


def finish(
    cell: Cell,
    mse: float,
    *,
    val_mse: float = 0.5,
    errors: np.ndarray | None = None,
    num_windows: int = WINDOWS,
    config: RunConfig | None = None,
    **facts: object,
) -> None:
    """Write what a finished cell leaves behind."""
    cell.folder.mkdir(parents=True)
    (cell.folder / "config.yaml").write_text(config_to_yaml(config or cell.config))
    costs = {"val_mse": val_mse, "train_s": 2.0, "trained_parameters": 1234}
    scores = {"mse": mse, "mae": mse / 2, "num_windows": num_windows}
    result = {
        "run": cell.config.name, "test_mse": mse, "ridge_mse": 0.9, "total_s": 3.0, "ranks": 1,
        "peak_rss_gib": 0.5, "peak_device_gib": None, "code": "c", "data": "d",
    }  # fmt: skip
    if cell.kind == "training":
        result |= costs | {
            "best_step": 10, "windows_per_s": 7.0, "scores": {"Time-LLM": scores},
        }  # fmt: skip
        names = ["Time-LLM"]
    else:
        from dist_train.baseline_names import BASELINES

        names = [BASELINES[name] for name in cell.names]
        result["rows"] = {name: costs | {"scores": scores} for name in names}
    (cell.folder / "result.json").write_text(json.dumps(result | facts))
    errors = np.full(WINDOWS, mse) if errors is None else errors
    tensors = {name: torch.from_numpy(errors).float() for name in names}
    tensors |= {
        "/series": torch.zeros(len(errors), dtype=torch.int64),
        "/forecast_start": torch.arange(len(errors)),
    }
    write_tensors(cell.folder / "window_errors.safetensors", tensors)
