"""dist_train/engine.py: the derived DeepSpeed JSON, and the user's own merged over it."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from dist_train import engine
from dist_train.config import DeepSpeedConfig, RunConfig, TrainConfig
from dist_train.engine import Engine, deepspeed_json
from tests.helpers.backbones import load_tiny
from tests.helpers.engines import odd_engine, run_config, train_plainly, train_step
from tests.helpers.ranks import run_ranks


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


def content(engine: Engine) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and what AdamW keeps; and the course of the learning rate."""
    tensors = engine.trained_parameters() | engine.optimizer_state()
    return tensors, {**engine.progress()["scheduler"], "rate": engine.learning_rate}


def check_same(mine: Any, expected: Any, what: str) -> None:
    assert mine[1] == expected[1], what
    assert mine[0].keys() == expected[0].keys(), what
    assert all(torch.equal(mine[0][name], value) for name, value in expected[0].items()), what


BAD = ("nan", "inf", "sum", "gradient")
KINDS = [
    (stage, offload, dtype)
    for stage in (0, 1, 2, 3)  # 3 comes last: it replaces torch's linear layers
    for offload in ("none", "optimizer")
    for dtype in (torch.float32, torch.bfloat16)
    if offload == "none" or stage > 1
]


def leave_out(rank: int, world_size: int) -> None:
    for stage, offload, dtype in KINDS:
        for clipping in (1.0, 0.0):
            config = run_config(stage, offload=offload, gradient_clipping=clipping)
            good, engine = odd_engine(config, dtype), odd_engine(config, dtype)
            assert train_step(good, 0)
            assert train_step(engine, 0)
            for number, kind in enumerate(BAD):
                what = f"{kind}, stage {stage}, {offload}, {dtype}, clipping {clipping}"
                before = content(engine)
                # Of the first, a middle and the last micro-batch, of the one rank or the other.
                assert not train_step(engine, 10 + number, spoil=kind, where=3 - number), what
                check_same(content(engine), before, what)
                assert train_step(good, 1 + number)
                assert train_step(engine, 1 + number), what
                check_same(content(engine), content(good), what)
            if dtype == torch.float32:
                weights, _ = train_plainly(1 + len(BAD), config)
                mine = engine.trained_parameters()
                for name, value in weights.items():
                    torch.testing.assert_close(mine[name], value, rtol=2e-5, atol=2e-7)
            assert engine.progress()["counters"]["skipped_steps"] == len(BAD)
            good.close()
            engine.close()


@pytest.mark.ranks
@pytest.mark.parametrize("world_size", [1, 2])
def test_a_step_that_is_not_finite_changes_nothing_on_any_rank_at_any_stage(world_size: int):
    run_ranks(leave_out, world_size, timeout_s=400)


def compare_losses(rank: int, world_size: int) -> None:
    """The factor that spoils gradients changes no bit of those of a finite loss."""
    engine = odd_engine(run_config(0))
    for value in (0.1, 1e-30, 1e30, 0.0):
        loss = torch.tensor(value, requires_grad=True)
        engine.module.zero_grad()
        backward, seen = engine._engine.backward, []
        engine._engine.backward = seen.append
        engine.backward(loss)
        engine._engine.backward = backward
        assert torch.equal(seen[0], loss)
        seen[0].backward()
        assert loss.grad == 1.0


@pytest.mark.ranks
def test_a_finite_loss_keeps_its_gradient_bit_for_bit():
    run_ranks(compare_losses, 1)


def test_what_zero3_shares_out_with_nobody_moves_to_the_ranks_device(
    monkeypatch: pytest.MonkeyPatch,
):
    """DeepSpeed moves no module of which a part is shared out already."""
    backbone = load_tiny("llama", width=64, dtype=torch.bfloat16, load_in_4bit=True)
    monkeypatch.setattr(engine.distributed, "device", lambda: torch.device("meta"))
    trained = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(trained.parameters())
    module: Any = torch.nn.ModuleDict({"backbone": backbone, "trained": trained})
    engine._prepare_unshared(module)
    assert trained.weight.dtype == torch.float32  # nothing is shared out: DeepSpeed does it all
    assert {buffer.device.type for buffer in backbone.buffers()} == {"cpu"}

    next(backbone.parameters()).ds_id = 0
    weights = [p.device for p in backbone.parameters()]
    engine._prepare_unshared(module)
    assert trained.weight.dtype == torch.bfloat16
    assert optimizer.param_groups[0]["params"][0] is trained.weight
    assert {buffer.device.type for buffer in backbone.buffers()} == {"meta"}
    states = [p.quant_state for p in backbone.parameters() if hasattr(p, "quant_state")]
    assert states
    assert {state.absmax.device.type for state in states} == {"meta"}
    assert [p.device for p in backbone.parameters()] == weights


def test_only_zero3_shares_a_backbone_out_as_it_is_loaded():
    for stage in (0, 1, 2):
        assert engine.partition_of({"zero_optimization": {"stage": stage}}) is None
    assert engine.partition_of({"zero_optimization": {}}) is None
    assert engine.partition_of({"zero_optimization": {"stage": 3}}) is not None
