"""Runs that take a second: short series, a random GPT-2 with two layers."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dist_train import preflight, report
from dist_train.config import RunConfig, TrainConfig
from dist_train.data.collate import Collator
from dist_train.data.config import DataConfig
from dist_train.data.windows import load_forecast_data
from dist_train.export import export_run
from dist_train.loading import LoadedRun
from dist_train.session import train_and_score
from dist_train.tracking_config import TrackingConfig
from memory_index.manifest import checksum_of
from model import TimeLLM
from model.config import BackboneConfig, GramConfig, ModelConfig, TaprConfig
from tests.helpers.backbones import tiny_backbone
from tests.helpers.ranks import run_ranks
from tests.helpers.series import write_series

STEPS = 20


def tiny_run(folder: Path, **changes: object) -> RunConfig:
    """Configure a tiny run in ``folder``; writes its series there once."""
    series = folder / "series.csv"
    if not series.exists():
        write_series(series)
    config = RunConfig(
        runs_dir=str(folder / "runs"),
        data=DataConfig(path=str(series), seq_len=48, pred_len=12, num_workers=0),
        model=ModelConfig(
            patch_len=8, stride=4, d_model=8, d_ff=8, n_heads=2, num_prototypes=12, dropout=0.0,
            prompt="stats_only", max_prompt_tokens=256,
        ),
        tapr=TaprConfig(use_tapr=True),
        gram=GramConfig(use_gram=True, d_repr=16),
        backbone=BackboneConfig(name=str(tiny_backbone("gpt2")), llm_layers=2),
        train=TrainConfig(
            batch_size=8, max_steps=STEPS, log_every=1, precision="fp32", learning_rate=1e-3,
            eval_batch_size=64, warmup_steps=0,
        ),
        tracking=TrackingConfig(wandb_mode="disabled"),
    )  # fmt: skip
    return replace(config, **changes)  # type: ignore[arg-type]


def with_memory_read(plain: RunConfig) -> RunConfig:
    """The same run as ``reading``, whose anchor reads what a memory retrieves."""
    return replace(
        plain, name="reading", model=replace(plain.model, anchor="ridge_retrieval"),
        gram=GramConfig(use_gram=True, retrieval_key="anchored", d_repr=16),
    )  # fmt: skip


def forecast_of_last_window(run: LoadedRun) -> np.ndarray:
    """What a run forecasts for the newest window of its test split, in original units. (H, N)."""
    data = load_forecast_data(run.config.data, with_dates=run.config.model.reads_dates)
    windows = data.windows["test"]
    forecast_1HN = run.forecast(Collator(windows, None)([len(windows) - 1]), "test")
    units_HN: np.ndarray = data.scalers[0].inverse(forecast_1HN[0].double().numpy())
    return units_HN


def loaded_and_exported(folder: Path, out: Path) -> tuple[TimeLLM, TimeLLM]:
    """The model of a run, from its folder and from what it exports to ``out``."""
    export_run(folder, out)
    return TimeLLM.from_pretrained(folder), TimeLLM.from_pretrained(out)


def assert_anchor_gains(folder: Path, row: str, share: float) -> None:
    """A run's anchor has less than a share of the ridge's error, and the model what it has."""
    scores = json.loads((folder / "result.json").read_text())["scores"]
    assert scores[row]["mse"] < share * scores["ridge"]["mse"]
    assert scores["Time-LLM"]["mse"] == pytest.approx(scores[row]["mse"], rel=0.02)


def train_each(rank: int, world_size: int, configs: list[RunConfig], figures: bool = False) -> None:
    """Train one run after the other; to be called through :func:`run_ranks`."""
    if not figures:  # two seconds of every run
        report.draw_figures = lambda *given: {}
    for config in configs:
        train_and_score(config, preflight.check(config))


def train_runs(configs: list[RunConfig], world_size: int = 1, *, figures: bool = False) -> None:
    """Train runs in processes of their own; their reports have figures on demand."""
    run_ranks(train_each, world_size, configs, figures, timeout_s=400)


def losses(folder: Path) -> list[float]:
    """Training loss of every step of a run."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line["train/loss"] for line in lines if "train/loss" in line]


def numbers(folder: Path) -> list[dict[str, float]]:
    """The lines of a run's metrics.jsonl, without what a clock or the process's memory says."""
    dropped = ("time_s", "perf/", "retrieval/search_ms", "retrieval/wait_ms", "system/")
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if not k.startswith(dropped)} for line in lines]


def claim_other_data(run: Path) -> None:
    """Alter a run as if it had been trained on other data, its checksums in order."""
    facts = json.loads((run / "best/series.json").read_text()) | {"checksum": "0" * 64}
    replace_file(run, "series.json", json.dumps(facts))


def claim_other_settings(run: Path, old: str, new: str) -> None:
    """Alter a run as if it had been trained with other settings, its checksums in order."""
    text = (run / "best/config.yaml").read_text()
    assert old in text
    replace_file(run, "config.yaml", text.replace(old, new))


def replace_file(run: Path, name: str, content: str) -> None:
    """Write a file of the best checkpoint anew, and its checksum."""
    file, manifest_file = run / "best" / name, run / "best/manifest.json"
    file.write_text(content)
    assert name in json.loads(manifest_file.read_text())["sha256"]
    checksum = hashlib.sha256(file.read_bytes()).hexdigest()
    change_manifest(run, lambda manifest: manifest["sha256"].update({name: checksum}))


def change_manifest(run: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Alter the manifest of the best checkpoint, its own checksum in order."""
    path = run / "best/manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    del manifest["manifest_sha256"]
    manifest["manifest_sha256"] = checksum_of(manifest)
    path.write_text(json.dumps(manifest))
