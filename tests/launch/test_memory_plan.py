"""Memory by part: what DeepSpeed and bitsandbytes really keep, and how it divides over ranks."""

import dataclasses
from typing import Any

import pytest
import torch

from dist_train import engine
from dist_train.config import ConfigError, DeepSpeedConfig, RunConfig, TrainConfig
from dist_train.data.config import DataConfig, SourceConfig
from dist_train.parameter_counts import count_parameters
from dist_train.shapes import published_shape, shape_of
from launch.memory_plan import (
    BUCKET,
    GATHERED,
    LIVE_PARAMETERS,
    BankBytes,
    MemoryPlan,
    plan_memory,
)
from launch.step_memory import StepMemory, random_batch, total_of
from model.anchor_fit import GramAccumulator
from model.backbone_files import locate_backbone
from model.backbone_loading import load_backbone
from model.config import NO_EXTENSION, BackboneConfig, Extension, GramConfig, ModelConfig
from model.forecaster import Forecaster
from model.linear_anchor import LinearAnchor
from tests.helpers.backbones import load_tiny, tiny_backbone
from tests.helpers.ranks import run_ranks

GIB = 2**30
STEP = StepMemory(training=7 * GIB, gradients_then=0, evaluation=3 * GIB)
GPT2 = published_shape("openai-community/gpt2", 12)


def planned(
    stage: int = 2, offload: str = "none", ranks: int = 1, precision: str = "bf16",
    device: Any = "gpu", bank: BankBytes | None = None, shape: Any = GPT2, **backbone: Any,
) -> MemoryPlan:  # fmt: skip
    config = RunConfig(
        backbone=BackboneConfig(name=shape.name, llm_layers=shape.num_layers, **backbone),
        train=TrainConfig(batch_size=64, micro_batch_size=1),
        deepspeed=DeepSpeedConfig(zero_stage=stage, offload=offload),  # type: ignore[arg-type]
    )
    return plan_memory(config, shape, count_parameters(config, shape), STEP, ranks=ranks,
                       precision=precision, device=device, runtime=GIB, bank=bank)  # fmt: skip


def tiny_config(stage: int) -> RunConfig:
    return RunConfig(
        data=DataConfig(seq_len=96, pred_len=24),
        model=ModelConfig(d_model=12, d_ff=16, n_heads=2, num_prototypes=30, max_prompt_tokens=9),
        gram=GramConfig(use_gram=False),
        backbone=BackboneConfig(name=str(tiny_backbone("gpt2")), llm_layers=2),
        train=TrainConfig(batch_size=2, precision="bf16"),
        deepspeed=DeepSpeedConfig(zero_stage=stage),
    )


def compare_optimizer(rank: int, world_size: int, configs: list[RunConfig]) -> None:
    """What a real engine's optimizer keeps after a step, to the byte."""
    for stage, config in enumerate(configs):
        for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
            files = locate_backbone(config.backbone.name)
            model = Forecaster(config.model, 96, 24, load_backbone(config.backbone, files, dtype),
                               tapr=config.tapr)  # fmt: skip
            assert model.trend is not None
            model.trend.thresholds.fit(torch.randn(100))
            settings = engine.deepspeed_json(config, world_size, dtype)
            ds = engine.initialize(model, config, settings, 10)
            ds.backward(total_of(ds(*random_batch(config, 2, 2 // world_size))))
            ds.step()
            shape = shape_of(files.config, 2)
            plan = plan_memory(
                config, shape, count_parameters(config, shape), STEP, ranks=world_size,
                precision=precision, device="cpu", runtime=0,
            )  # fmt: skip
            parts = plan.phases["optimizer"]
            expected = parts["optimizer"] + parts.get("float32 copies", 0)
            # A step count for each parameter, or partition; ZeRO-3 pads each parameter apart.
            slack = 4 * 200 + (world_size - 1) * 12 * 200 * (stage == 3)
            found = ds.optimizer_bytes()
            assert 0 <= found - expected <= slack, (stage, precision, found, expected, slack)
            ds.close()


@pytest.mark.ranks
@pytest.mark.parametrize("world_size", [1, 2])
def test_the_optimizer_keeps_what_the_plan_says(world_size: int):
    run_ranks(compare_optimizer, world_size, list(map(tiny_config, range(4))), timeout_s=400)


def test_the_bucket_is_the_one_that_deepspeed_is_told():
    assert engine.BUCKET == BUCKET
    assert engine.deepspeed_json(tiny_config(2), 1, torch.bfloat16)["zero_optimization"][
        "reduce_bucket_size"
    ] == BUCKET  # fmt: skip


def test_4_bit_weights_take_what_bitsandbytes_keeps():
    pytest.importorskip("bitsandbytes")
    backbone = load_tiny("llama", 2, width=256, load_in_4bit=True, dtype=torch.bfloat16)
    kept = 0
    for parameter in backbone.parameters():
        kept += parameter.nbytes
        state: Any = getattr(parameter, "quant_state", None)
        if state is not None:
            kept += state.absmax.nbytes + state.state2.absmax.nbytes
    files = locate_backbone(str(tiny_backbone("llama", width=256)))
    plan = planned(shape=shape_of(files.config, 2), load_in_4bit=True)
    assert plan.phases["training"]["frozen weights"] == pytest.approx(kept, rel=0.005)


def test_a_rank_alone_has_everything():
    parts = planned(stage=0, ranks=1, precision="bf16").phases["optimizer"]
    config = RunConfig(backbone=BackboneConfig(name="x", llm_layers=12))
    counts = count_parameters(config, GPT2)
    assert parts["frozen weights"] == 2 * GPT2.total_weights
    assert parts["trained weights"] == 2 * counts.trained_total
    assert parts["float32 copies"] == 4 * counts.trained_total
    assert parts["optimizer"] == 8 * counts.trained_total
    assert "float32 copies" not in planned(stage=0, precision="fp32").phases["optimizer"]


def test_four_bits_are_shared_out_block_by_block_as_they_are_read():
    """A rank holds its share then, and one block of twelve before it is packed."""
    whole, share = (
        planned(3, ranks=ranks, load_in_4bit=True, device="cpu").phases["loading"]
        for ranks in (1, 64)
    )
    counts = count_parameters(RunConfig(backbone=BackboneConfig(name=GPT2.name)), GPT2)
    block = 2 * counts.frozen_matrices / GPT2.num_layers
    name = "frozen weights"
    assert share[name] - block == pytest.approx((whole[name] - block) / 64)
    fresh = planned(3, ranks=64, kind="random", load_in_4bit=True, device="cpu")
    assert fresh.phases["loading"][name] > whole[name]


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_the_optimizer_divides_over_the_ranks(stage: int):
    alone, many = planned(stage, ranks=1).parts, planned(stage, ranks=64).parts
    assert many["optimizer"] == pytest.approx(alone["optimizer"] / 64, rel=0.001)
    divides = 64 if stage == 3 else 1
    assert many["frozen weights"] == pytest.approx(alone["frozen weights"] / divides)


def test_zero_3_gathers_at_most_a_billion_parameters():
    small = planned(3, ranks=8).phases["training"][GATHERED]
    assert small == pytest.approx(2 * GPT2.total_weights, rel=0.1)
    shape = published_shape("meta-llama/Llama-3.1-70B", 80)
    large = planned(3, ranks=8, shape=shape).phases["training"][GATHERED]
    assert large == pytest.approx(2 * LIVE_PARAMETERS)
    assert GATHERED not in planned(3, ranks=1).phases["training"]


def test_offloading_moves_the_optimizer_to_the_host():
    kept, moved = planned(2), planned(2, "optimizer")
    assert "optimizer" in kept.parts
    assert "optimizer" not in moved.parts
    assert moved.host["optimizer"] == kept.parts["optimizer"]
    assert moved.total < kept.total
    everything = planned(3, "all", ranks=2)
    assert "frozen weights" not in everything.parts
    assert "frozen weights" in everything.host


def test_a_bank_counts_where_it_lies():
    index = BankBytes(index=2 * GIB, building=GIB, refreshed=True, ids=8, on_device=True)
    on_gpu = planned(bank=index)
    assert on_gpu.total - planned().total == 3 * GIB
    on_host = planned(bank=dataclasses.replace(index, on_device=False))
    assert on_host.total == planned().total
    assert on_host.host["bank index"] == 2 * GIB
    once = planned(bank=dataclasses.replace(index, refreshed=False))
    assert once.total - planned().total == 2 * GIB


def test_the_largest_phase_is_what_a_run_needs():
    plan = planned(device="cpu")
    assert plan.peak_phase == "training"
    assert plan.total == max(sum(parts.values()) for parts in plan.phases.values())
    assert plan.host == {}
    assert set(plan.phases) > {"loading", "engine start", "optimizer", "evaluation"}


def test_fresh_weights_are_loaded_in_float32():
    assert planned(device="cpu", kind="random").phases["loading"]["frozen weights"] == (
        4 * GPT2.total_weights
    )


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(ConfigError, match="train.batch_size=64 does not divide over 3 ranks"):
        planned(ranks=3)


def test_weights_of_each_variate_count_as_often():
    def plan(weights: Any, device: Any, num_variates: int) -> MemoryPlan:
        config = RunConfig(
            data=DataConfig(seq_len=720, pred_len=96),
            model=ModelConfig(anchor_weights=weights),
            backbone=BackboneConfig(name=GPT2.name, llm_layers=12),
        )
        return plan_memory(config, GPT2, count_parameters(config, GPT2), STEP, ranks=1,
                           precision="bf16", device=device, runtime=GIB,
                           num_variates=num_variates)  # fmt: skip

    shared, few, many = (
        plan(*of)
        for of in (("shared", "cpu", 900), ("individual", "cpu", 3), ("individual", "cpu", 900))
    )
    more = many.phases["training"]["other tensors"] - shared.phases["training"]["other tensors"]
    assert more == 899 * 720 * 96 * 4
    assert "sums of the ridges" not in shared.phases["ridge"]
    assert many.phases["training"]["closed form"] == 3 * 900 * 720 * 96 * 8  # the memory: auto
    per_variate = 8 * (4 * 720 * (720 + 96) + 7 * 720 * 96)
    assert few.phases["ridge"]["sums of the ridges"] == 3 * per_variate
    assert (few.peak_phase, many.peak_phase) == ("training", "ridge")
    # Beside a GPU they lie in host memory, before anything else does.
    host = plan("individual", "gpu", 900).host
    assert host["sums of the ridges"] + host["closed form"] == 900 * per_variate
    assert "weights while loading" in plan("individual", "gpu", 3).host


@pytest.mark.parametrize("individual", [False, True])
@pytest.mark.parametrize("reads", [False, True])
def test_random_features_count_as_what_is_made_of_them(individual: bool, reads: bool):
    def plan(features: int) -> MemoryPlan:
        config = RunConfig(
            data=DataConfig(seq_len=96, pred_len=24),
            model=ModelConfig(
                anchor="ridge_retrieval" if reads else "ridge",
                anchor_weights="individual" if individual else "shared",
                anchor_random_features=features,
            ),
            backbone=BackboneConfig(name=GPT2.name, llm_layers=12),
            gram=GramConfig(use_gram=reads, retrieval_key="anchored"),
        )
        return plan_memory(config, GPT2, count_parameters(config, GPT2), STEP, ranks=1,
                           precision="bf16", device="cpu", runtime=GIB, num_variates=3)  # fmt: skip

    features, variates = 1000, 3 if individual else 1
    extension = Extension(random_features=features)
    anchors = [
        LinearAnchor(96, 24, reads_future=reads, extension=one, num_variates=variates)
        for one in (NO_EXTENSION, extension)
    ]
    sizes = [sum(one.nbytes for one in anchor.buffers()) for anchor in anchors]
    more = [plan(one).phases["training"]["other tensors"] for one in (0, features)]
    assert more[1] - more[0] == pytest.approx(sizes[1] - sizes[0], rel=1e-3)
    # Two norms of two splits; or those of a sample and of all samples, with and without futures.
    if reads and not individual:
        sums = 4 * [GramAccumulator(96, 24, "last", reads_future=one, extension=extension)
                    for one in (False, False, True, True)]  # fmt: skip
    else:
        sums = 4 * [GramAccumulator(96, 24, "last", extension=extension, num_variates=variates)]
    held = sum(part.nbytes for one in sums for part in one.tensors)
    told = plan(features).phases["ridge"]["sums of the ridges"]
    solutions = 8 * 8 * variates * (96 + features) * 24
    assert told == pytest.approx(held + solutions, rel=1e-3)


def test_each_source_has_an_anchor_and_solutions_of_its_own():
    def plan(sources: int) -> MemoryPlan:
        named = [SourceConfig(name=f"s{number}") for number in range(sources)]
        config = RunConfig(
            data=DataConfig(seq_len=96, pred_len=24, sources=named),
            model=ModelConfig(anchor="ridge", anchor_random_features=1000),
            backbone=BackboneConfig(name=GPT2.name, llm_layers=12),
            gram=GramConfig(use_gram=False),
        )
        return plan_memory(config, GPT2, count_parameters(config, GPT2), STEP, ranks=1,
                           precision="bf16", device="cpu", runtime=GIB, num_variates=1)  # fmt: skip

    extension = Extension(random_features=1000)
    sizes = [
        LinearAnchor(96, 24, extension=extension, num_sources=number).weight.nbytes
        for number in (1, 3)
    ]
    one, three = (plan(number).phases["training"] for number in (1, 3))
    assert three["other tensors"] - one["other tensors"] == sizes[1] - sizes[0]
    assert "closed form" not in one
    assert three["closed form"] == 2 * sizes[1]  # float64
