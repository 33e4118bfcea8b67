"""dist_train/session.py: what a run writes down, decides before training, and refuses."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dist_train import preflight, session
from dist_train.baselines import fit_ridge
from dist_train.build import build_forecaster
from dist_train.checkpoint import load_checkpoint
from dist_train.config import RunConfig, load_run_config
from dist_train.data.windows import load_forecast_data
from dist_train.leak_alarm import LeakError
from dist_train.retrieval import Retriever
from dist_train.session import REPLACED, train_and_score
from dist_train.trend_fit import training_changes
from dist_train.window_errors import read_window_errors
from memory_index.exclusion import Exclusion
from model.backbone_files import locate_backbone
from tests.helpers.ranks import run_ranks
from tests.helpers.runs import tiny_run


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_the_result_says_what_was_trained_and_how_well(finished_run: Path):
    result = json.loads((finished_run / "result.json").read_text())
    assert result["use_gram"] is True
    assert "ridge_retrieval_val_mse" not in result  # nobody asked
    assert result["test_mse"] == pytest.approx(result["scores"]["Time-LLM"]["mse"], abs=1e-6)
    data = load_forecast_data(load_run_config(finished_run / "config.yaml").data)
    assert result["ridge_val_mse"] == pytest.approx(fit_ridge(data).validation_mse)


def test_the_result_says_what_was_paid_and_what_it_was_trained_on(finished_run: Path):
    result = json.loads((finished_run / "result.json").read_text())
    checkpoint = load_checkpoint(finished_run / "best")
    config = load_run_config(finished_run / "config.yaml")
    model = build_forecaster(config, locate_backbone(config.backbone.name), torch.float32)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert result["trained_parameters"] == trained > 0
    assert (result["peak_device_gib"] is None) == (not torch.cuda.is_available())
    assert result["data"] == checkpoint.series["checksum"]
    assert result["backbone"] == checkpoint.manifest["backbone"]["fingerprint"]


def test_the_error_of_every_test_window_is_kept(finished_run: Path):
    result = json.loads((finished_run / "result.json").read_text())
    errors = read_window_errors(finished_run / "window_errors.safetensors")
    assert sorted(errors.mse) == sorted(result["scores"])
    for name, row in result["scores"].items():
        assert len(errors.mse[name]) == row["num_windows"]
        assert errors.mse[name].mean() == pytest.approx(row["mse"], rel=1e-5)


def test_what_a_killed_run_left_is_swept_and_nothing_of_the_user(tmp_path: Path):
    folder = tmp_path / "run"
    folder.mkdir()
    for name in (*(f".{name}.4711" for name in REPLACED), ".notes.2024", ".netrc"):
        (folder / name).touch()
    session._open_folder(folder, tiny_run(tmp_path), None)
    names = {path.name for path in folder.iterdir()}
    assert names == {"config.yaml", "environment.json", ".notes.2024", ".netrc"}


def test_every_file_that_a_run_replaces_is_known(finished_run: Path):
    written = {path.name for path in finished_run.iterdir() if path.is_file()}
    assert written - {".lock"} <= set(REPLACED)


def test_every_term_is_logged_by_name_with_its_weight(finished_run: Path):
    terms = {
        "forecast": 1.0, "direction": 0.15, "magnitude": 0.15, "hierarchy": 0.05, "change": 0.05,
        "gate_entropy": 0.3, "gate_consistency": 0.3,
    }  # fmt: skip
    for line in (line for line in lines(finished_run) if "train/loss" in line):
        weights = {name: line[f"train/weight_{name}"] for name in terms}
        assert weights == pytest.approx(terms)
        total = sum(weight * line[f"train/loss_{name}"] for name, weight in terms.items())
        assert line["train/loss"] == pytest.approx(total, rel=1e-4)  # the warm-up is off
        for level in ("direction", "magnitude"):
            assert 0 <= line[f"train/accuracy_{level}"] <= 1
            assert 0 < line[f"train/majority_{level}"] <= 1


def test_retrieval_alone_is_measured_before_training(finished_run: Path):
    (first,) = [line for line in lines(finished_run) if "retrieval/overlaps" in line]
    assert first["step"] == 0
    assert first["retrieval/overlaps"] == 0
    assert 0 < first["retrieval/train_over_repeat_last"] < 2
    assert 0 < first["retrieval/val_over_repeat_last"] < 2


def test_the_checkpoint_has_thresholds_of_the_training_split_and_the_memorys_encoder(
    finished_run: Path,
):
    checkpoint = load_checkpoint(finished_run / "best")
    data = load_forecast_data(load_run_config(finished_run / "config.yaml").data)
    changes = training_changes(data.windows["train"]).double().numpy()
    np.testing.assert_allclose(
        checkpoint.model["trend.thresholds.values"].numpy(),
        np.quantile(changes, [0.15, 0.40, 0.60, 0.85]),
        rtol=1e-5,
    )
    encoder = {name for name in checkpoint.model if name.startswith("memory.encoder.")}
    assert {f"memory.encoder.{name}" for name in checkpoint.memory} == encoder != set()


def leak(rank: int, world_size: int, config: RunConfig, out: Path) -> None:
    nothing = Exclusion(seq_len=0, pred_len=0, past_only=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Retriever, "exclusion", lambda self, *, past_only: nothing)
        with pytest.raises(LeakError, match="overlap their query in time"):
            train_and_score(config, preflight.check(config))
        (out / f"stopped-{rank}").touch()
        gram = replace(config.gram, leak_alarm="warn")
        config = replace(config, name="warned", gram=gram)
        train_and_score(config, preflight.check(config))


@pytest.mark.ranks
def test_a_memory_that_shows_the_answer_stops_every_rank_or_is_only_told(tmp_path: Path):
    base = tiny_run(tmp_path, name="stopped")
    config = replace(
        base,
        # Retrieval beats repeat-last on this cycle anyway: only the window itself is far better.
        gram=replace(base.gram, top_k=1, retrieval_key="anchored", d_repr=48),
        train=replace(base.train, max_steps=2),
    )
    run_ranks(leak, 2, config, tmp_path, timeout_s=400)
    assert (tmp_path / "stopped-0").exists()
    assert (tmp_path / "stopped-1").exists()
    assert not (tmp_path / "runs/stopped/result.json").exists()
    assert not (tmp_path / "runs/stopped/best").exists()
    (told,) = [line for line in lines(tmp_path / "runs/warned") if "retrieval/overlaps" in line]
    assert told["retrieval/overlaps"] > 0
    assert (tmp_path / "runs/warned/result.json").exists()
