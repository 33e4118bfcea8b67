"""Training on one CUDA device: it runs at every precision, and agrees with the CPU."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dist_train.config import DeepSpeedConfig, RunConfig, config_to_yaml
from model.config import GramConfig
from tests.helpers.runs import STEPS, losses, tiny_run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]


def train(config: RunConfig, *, on_gpu: bool) -> Path:
    """Train in a process of its own; returns the run folder."""
    path = Path(config.runs_dir).parent / f"{config.name}.yaml"
    path.write_text(config_to_yaml(config))
    environment = dict(os.environ)
    if on_gpu:
        environment.pop("DS_ACCELERATOR", None)
    else:
        environment |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    command = [sys.executable, "-m", "dist_train.train", "--config", str(path)]
    subprocess.run(command, check=True, env=environment, timeout=280)
    return config.run_folder


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_trains_like_the_cpu_in_fp32(tmp_path: Path, stage: int):
    base = tiny_run(tmp_path, deepspeed=DeepSpeedConfig(zero_stage=stage))
    gpu = train(replace(base, name="gpu"), on_gpu=True)
    cpu = train(replace(base, name="cpu"), on_gpu=False)
    assert len(losses(gpu)) == STEPS
    assert losses(gpu) == pytest.approx(losses(cpu), abs=2e-3)


@pytest.mark.parametrize("precision", ["auto", "bf16", "fp16"])
def test_trains_in_half_precision(tmp_path: Path, precision: str):
    base = tiny_run(tmp_path)
    run = train(replace(base, train=replace(base.train, precision=precision)), on_gpu=True)
    result = json.loads((run / "result.json").read_text())
    assert result["steps"] == STEPS
    assert result["test_mse"] < 2 * result["ridge_mse"]


def test_the_anchored_memory_and_its_anchor_run_on_the_device(tmp_path: Path):
    base = tiny_run(tmp_path)
    gram = GramConfig(use_gram=True, retrieval_key="anchored", d_repr=16)
    model = replace(base.model, anchor="ridge_retrieval")
    run = train(replace(base, model=model, gram=gram), on_gpu=True)
    result = json.loads((run / "result.json").read_text())
    assert "ridge + retrieval" in result["scores"]
    assert result["val_mse"] <= result["ridge_val_mse"] * (1 + 1e-5)
