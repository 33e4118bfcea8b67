"""dist_train/engine.py: the derived DeepSpeed JSON, and the user's own merged over it."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dist_train.config import DeepSpeedConfig, RunConfig, TrainConfig
from dist_train.engine import Engine, deepspeed_json


def run(**deepspeed: object) -> RunConfig:
    return RunConfig(
        train=TrainConfig(batch_size=24, micro_batch_size=3, gradient_clipping=0.5),
        deepspeed=DeepSpeedConfig(**deepspeed),  # type: ignore[arg-type]
    )


def user_file(folder: Path, content: object) -> str:
    path = folder / "ds.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def test_batch_sizes_multiply_to_the_global_batch():
    settings = deepspeed_json(run(), 2, torch.float32)
    assert settings["train_batch_size"] == 24
    assert settings["train_micro_batch_size_per_gpu"] == 3
    assert settings["gradient_accumulation_steps"] == 4
    assert settings["gradient_clipping"] == 0.5


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_stage_is_passed_on(stage: int):
    settings = deepspeed_json(run(zero_stage=stage), 1, torch.float32)
    assert settings["zero_optimization"]["stage"] == stage


def test_buffers_of_gradients_are_not_larger_than_a_forecaster_needs():
    settings = deepspeed_json(run(), 1, torch.float32)["zero_optimization"]
    assert settings["reduce_bucket_size"] == settings["allgather_bucket_size"] == 20_000_000


def test_offload_is_passed_on():
    settings = deepspeed_json(run(zero_stage=3, offload="all"), 1, torch.float32)
    assert settings["zero_optimization"]["offload_optimizer"] == {"device": "cpu"}
    assert settings["zero_optimization"]["offload_param"] == {"device": "cpu"}


@pytest.mark.parametrize(
    ("dtype", "bf16", "fp16"),
    [(torch.float32, False, False), (torch.bfloat16, True, False), (torch.float16, False, True)],
)
def test_precision_is_passed_on(dtype: torch.dtype, bf16: bool, fp16: bool):
    settings = deepspeed_json(run(), 1, dtype)
    assert (settings["bf16"]["enabled"], settings["fp16"]["enabled"]) == (bf16, fp16)


def test_the_users_file_is_merged_over_the_derived_one(tmp_path: Path):
    own = {"zero_optimization": {"overlap_comm": True}, "wall_clock_breakdown": True}
    settings = deepspeed_json(run(config_file=user_file(tmp_path, own)), 1, torch.float32)
    assert settings["zero_optimization"]["stage"] == 2
    assert settings["zero_optimization"]["overlap_comm"] is True
    assert settings["wall_clock_breakdown"] is True
    assert settings["gradient_clipping"] == 0.5


def test_the_optimizers_bytes_are_its_state_and_its_own_copies():
    module, copy = torch.nn.Linear(5, 3, bias=False), torch.nn.Parameter(torch.ones(15))
    optimizer = torch.optim.AdamW([*module.parameters(), copy])
    engine = Engine(SimpleNamespace(module=module, basic_optimizer=optimizer))
    assert engine.optimizer_bytes() == 15 * 4
    module(torch.ones(2, 5)).sum().backward()
    optimizer.step()  # two averages of the module's weights, and the count of steps
    assert engine.optimizer_bytes() == 15 * 4 + 2 * 15 * 4 + 4
