"""Training with TAPR and GRA-M: the decision, the anchor, the refresh, and odd series."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from dist_train import preflight
from dist_train.checkpoint import load_checkpoint
from dist_train.config import RunConfig, load_run_config
from dist_train.data.collate import Collator
from dist_train.data.windows import load_forecast_data
from dist_train.loading import load_run
from dist_train.retrieval import Retriever
from dist_train.session import train_and_score
from model.config import GramConfig
from tests.helpers.ranks import run_ranks
from tests.helpers.runs import losses, tiny_run
from tests.helpers.series import random_motifs

pytestmark = pytest.mark.ranks

L, H = 24, 8
STEPS = 6


def series_file(folder: Path, name: str, values: np.ndarray) -> str:
    frame = pd.DataFrame(values, columns=["v0", "v1"])
    frame.insert(0, "date", pd.date_range("2020", periods=len(values), freq="h"))
    frame.to_csv(folder / f"{name}.csv", index=False)
    return str(folder / f"{name}.csv")


def autoregression() -> np.ndarray:
    values = np.random.default_rng(0).normal(size=(800, 2))
    for row in range(1, len(values)):
        values[row] += 0.9 * values[row - 1]
    return values


def flat_in_places() -> np.ndarray:
    values = autoregression()[:400]
    values[:, 0] = 3.0
    values[100:260, 1] = values[100, 1]
    return values


def config_of(
    folder: Path, name: str, path: str, gram: GramConfig, anchor: str = "ridge", **train: object
) -> RunConfig:
    base = tiny_run(folder, name=name)
    return replace(
        base,
        data=replace(base.data, path=path, seq_len=L, pred_len=H),
        model=replace(base.model, anchor=anchor),  # type: ignore[arg-type]
        gram=gram,
        train=replace(base.train, **{"max_steps": STEPS} | train),  # type: ignore[arg-type]
    )


def train_all(rank: int, world_size: int, configs: list[RunConfig], counted: list[str]) -> None:
    """Train each run; of those named in ``counted`` write how often the memory was encoded."""
    finish = Retriever.finish_refresh
    for config in configs:
        made: list[str] = []

        def watched(
            self: Retriever, *, swap: bool = True, or_keep: bool = False, made: list[str] = made
        ) -> bool:
            begun = self._next is not None
            swapped = finish(self, swap=swap, or_keep=or_keep)
            if begun and swap:
                made.append(self.fingerprint)
            return swapped

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Retriever, "finish_refresh", watched)
            train_and_score(config, preflight.check(config))
        if config.name in counted:
            (config.run_folder / f"refreshes-{rank}.json").write_text(json.dumps(made))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of this file; they share one start of DeepSpeed."""
    folder = tmp_path_factory.mktemp("enhanced")
    motifs = series_file(folder, "motifs", random_motifs(rows=800, length=L + H))
    noise = series_file(folder, "noise", autoregression())
    flat = series_file(folder, "flat", flat_in_places())
    auto = GramConfig(use_gram="auto", d_repr=L, temperature=0.05)
    dual = GramConfig(use_gram=True, d_repr=8)
    anchored = replace(auto, use_gram=True, retrieval_key="anchored")
    configs = [
        config_of(folder, "auto-motifs", motifs, auto, max_steps=2),
        config_of(folder, "auto-noise", noise, auto, max_steps=2),
        config_of(folder, "anchored", motifs, anchored, "ridge_retrieval", learning_rate=0.5),
        config_of(folder, "every-2", motifs, replace(dual, refresh_every=2), learning_rate=1e-2),
        config_of(
            folder, "each-epoch", motifs, dual, batch_size=264, max_epochs=2, max_steps=None,
            micro_batch_size=None, learning_rate=1e-2,
        ),
        config_of(folder, "flat", flat, replace(dual, top_k=3), "none"),
        config_of(folder, "flat-bf16", flat, replace(dual, top_k=3), precision="bf16"),
    ]  # fmt: skip
    run_ranks(train_all, 1, configs, ["every-2", "each-epoch", "anchored"], timeout_s=400)
    return folder / "runs"


def result(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "result.json").read_text())
    return content


@pytest.mark.parametrize(("name", "helps"), [("auto-motifs", True), ("auto-noise", False)])
def test_auto_builds_the_memory_where_validation_says_that_it_helps(
    runs: Path, name: str, helps: bool
):
    told = result(runs / name)
    assert told["use_gram"] is helps
    assert (told["ridge_retrieval_val_mse"] < told["ridge_sample_val_mse"]) is helps
    checkpoint = load_checkpoint(runs / name / "best")
    assert any(key.startswith("memory.") for key in checkpoint.model) is helps
    assert load_run_config(runs / name / "best/config.yaml").gram.use_gram is helps
    assert load_run_config(runs / name / "config.yaml").gram.use_gram == "auto"
    assert (load_run(runs / name).retriever is not None) is helps


def test_an_anchor_with_retrieval_is_never_left_for_worse_on_validation(runs: Path):
    told = result(runs / "anchored")
    assert told["val_mse"] <= told["ridge_retrieval_val_mse"] * (1 + 1e-5)
    assert told["val_mse"] < 0.8 * told["ridge_val_mse"]
    assert told["test_mse"] < 0.8 * told["ridge_mse"]


def refreshes(run: Path) -> list[str]:
    made: list[str] = json.loads((run / "refreshes-0.json").read_text())
    return made


def test_the_memory_is_encoded_anew_as_often_as_asked(runs: Path):
    # Before training, after steps 2 and 4 of 6, and when the best parameters come back.
    every = refreshes(runs / "every-2")
    assert len(every) == 4
    assert len(set(every[:3])) == 3
    assert every[3] in every[:3]
    # Two epochs of two steps: before training, after the first epoch, and at the end.
    each = refreshes(runs / "each-epoch")
    assert result(runs / "each-epoch")["steps"] == 4
    assert len(each) == 3
    assert len(set(each[:2])) == 2
    # Twice before training: once to solve the anchor, once for the run.
    assert len(refreshes(runs / "anchored")) == 2


def test_a_loaded_run_searches_with_the_encoder_that_its_best_step_searched_with(runs: Path):
    run = load_run(runs / "every-2")
    assert run.retriever is not None
    assert run.retriever.fingerprint == refreshes(runs / "every-2")[-1]
    data = load_forecast_data(run.config.data)
    windows = data.windows["test"]
    batch = Collator(windows, run.prompt_builder)(list(range(len(windows))))
    mse = (run.forecast(batch, "test") - batch.target).square().mean()
    assert float(mse) == pytest.approx(result(runs / "every-2")["test_mse"], abs=1e-5)


@pytest.mark.parametrize("name", ["flat", "flat-bf16"])
def test_series_without_variance_train_to_finite_numbers(runs: Path, name: str):
    assert np.isfinite(losses(runs / name)).all()
    assert np.isfinite(result(runs / name)["test_mse"])
    for tensor in load_checkpoint(runs / name / "best").model.values():
        assert torch.isfinite(tensor.float()).all()
