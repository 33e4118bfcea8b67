"""dist_train/loading.py: a run is opened from its folder alone, and never with other weights."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dist_train.checkpoint import CheckpointError, load_checkpoint
from dist_train.data.collate import Collator
from dist_train.data.config import DataError
from dist_train.data.windows import load_forecast_data
from dist_train.loading import load_run
from dist_train.retrieval import Retriever
from model.config import BackboneConfig, LoraConfig
from tests.helpers.backbones import tiny_backbone
from tests.helpers.runs import change_manifest, claim_other_data, tiny_run, train_runs


def test_the_loaded_model_has_the_saved_parameters(finished_run: Path):
    run = load_run(finished_run)
    saved = load_checkpoint(finished_run / "best").model
    loaded = run.module.trained_state_dict()
    assert loaded.keys() == saved.keys()
    assert all(torch.equal(loaded[name], value) for name, value in saved.items())
    assert not run.module.training


def test_it_forecasts_what_the_training_reported(finished_run: Path):
    run = load_run(finished_run)
    data = load_forecast_data(run.config.data)
    windows = data.windows["test"]
    batch = Collator(windows, run.prompt_builder)(list(range(len(windows))))
    mse = (run.forecast(batch, "test") - batch.target).square().mean()
    result = json.loads((finished_run / "result.json").read_text())
    assert float(mse) == pytest.approx(result["test_mse"], abs=1e-5)


@pytest.mark.ranks
@pytest.mark.parametrize(
    "backbone",
    [
        {"load_in_4bit": True, "lora": LoraConfig(r=4)},
        {"kind": "transformer"},
        {"kind": "random"},
        {"activation_checkpointing": True},
    ],
    ids=["4-bit-lora", "transformer", "random", "recomputed"],
)
def test_every_kind_of_backbone_comes_back(tmp_path: Path, backbone: dict[str, Any]):
    name = str(tiny_backbone("llama", width=64))
    config = tiny_run(tmp_path, backbone=BackboneConfig(name=name, llm_layers=2, **backbone))
    model = replace(config.model, anchor="none")  # or the anchor alone may be the best model
    train_runs([replace(config, model=model, train=replace(config.train, max_steps=6))])
    run = load_run(config.run_folder)
    windows = load_forecast_data(run.config.data).windows["test"]
    batch = Collator(windows, run.prompt_builder)(list(range(len(windows))))
    mse = (run.forecast(batch, "test") - batch.target).square().mean()
    result = json.loads((config.run_folder / "result.json").read_text())
    assert result["best_step"] > 0
    assert float(mse) == pytest.approx(result["test_mse"], abs=1e-5)


def test_the_memory_finds_what_it_found_when_the_checkpoint_was_validated(finished_run: Path):
    run, again = load_run(finished_run), load_run(finished_run)
    memory = load_checkpoint(finished_run / "best").memory
    assert run.retriever is not None
    assert again.retriever is not None
    data = load_forecast_data(run.config.data)
    fresh = Retriever(data, run.config.gram, run.config.bank)
    fresh.refresh(memory)
    batch = Collator(data.windows["test"], None)(list(range(0, len(data.windows["test"]), 7)))
    found = fresh.search_batch(batch, "test")
    for other in (run.retriever, again.retriever):
        assert other.fingerprint == fresh.fingerprint
        assert torch.equal(other.search_batch(batch, "test").ids, found.ids)
        assert torch.equal(other.search_batch(batch, "test").weights, found.weights)


def test_refuses_series_that_have_changed_since_where_the_run_has_a_memory(
    finished_run: Path, tmp_path: Path
):
    run = shutil.copytree(finished_run, tmp_path / "run")
    claim_other_data(run)
    with pytest.raises(DataError, match=r"not the one the run was trained on .* restore it, or"):
        load_run(run)


def test_refuses_a_folder_that_is_not_there():
    with pytest.raises(CheckpointError, match="--run nowhere: no such folder"):
        load_run(Path("nowhere"))


def test_refuses_another_backbone(finished_run: Path, tmp_path: Path):
    run = shutil.copytree(finished_run, tmp_path / "run")
    change_manifest(run, lambda manifest: manifest["backbone"].update(fingerprint="0" * 64))
    with pytest.raises(CheckpointError, match="not the ones this run was trained with"):
        load_run(run)
    assert tiny_backbone("gpt2").is_dir()
