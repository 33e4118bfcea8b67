from dataclasses import replace

import pytest
import torch
from torch import nn

from benchmarks.step_time_ranks import count_traffic
from dist_train.config import DeepSpeedConfig, RunConfig, TrainConfig
from dist_train.engine import deepspeed_json, initialize
from launch.hardware import HARDWARE, Link
from launch.step_time import step_time
from launch.workload import SearchWork, Workload
from tests.helpers.ranks import run_ranks

H100 = HARDWARE["h100"]
SEARCH = SearchWork(
    queries=56,
    query_bytes=1000,
    answer_bytes=60,
    value_bytes=10_000,
    search_flops=0,
    visited_bytes=1e8,
    entries=10_000_000,
    sharing="rank",
)
WORK = Workload(
    windows=64,
    micro_batches=2,
    flops=4e12,
    zero_stage=2,
    trained_weights=5_000_000,
    gradient_bytes=10_000_000,
    parameter_bytes=10_000_000,
    optimizer_bytes=35e6,
    gathered_bytes=50e6,
    gathers=10,
)


def test_one_rank_computes_and_updates_and_that_is_all():
    time = step_time(WORK, H100, 1)
    assert time.compute_s == 2 * 4e12 / H100.flops
    assert time.optimizer_s == 35e6 / H100.memory_bytes_per_s
    assert time.total_s == time.compute_s + time.optimizer_s
    assert not time.collectives
    assert time.exposed_s == 0
    assert time.search_is_hidden


def test_fewer_than_one_rank_is_refused():
    with pytest.raises(ValueError, match="ranks must be at least 1, got 0"):
        step_time(WORK, H100, 0)


def test_the_parts_add_up_to_the_step():
    time = step_time(replace(WORK, search=SEARCH), H100, 64)
    parts = time.compute_s + time.optimizer_s + time.exposed_s + time.search_exposed_s
    assert time.total_s == pytest.approx(parts)
    assert time.exposed_s == pytest.approx(time.collectives_s)
    assert time.windows_per_s == 64 / time.total_s


def test_an_epoch_is_its_whole_batches():
    time = step_time(WORK, H100, 8)
    assert time.epoch_s(6_500) == 101 * time.total_s


def test_what_stage_3_sends_runs_beside_the_compute():
    time = step_time(replace(WORK, zero_stage=3), H100, 64)
    hidden = time.collectives["all-gather parameters"]
    assert hidden.overlaps
    assert hidden.seconds < time.compute_s
    serial = sum(one.seconds for one in time.collectives.values() if not one.overlaps)
    assert time.total_s == pytest.approx(time.compute_s + time.optimizer_s + serial)
    slow = replace(H100, inter=Link(bytes_per_s=1e8, latency_s=1e-5))
    bound = step_time(replace(WORK, zero_stage=3), slow, 64)
    sent = sum(one.seconds for one in bound.collectives.values() if one.overlaps)
    assert sent > bound.compute_s
    assert bound.total_s > sent


def test_stage_2_sends_gradients_at_every_micro_batch_and_1_once():
    two, one = (
        step_time(replace(WORK, zero_stage=stage), H100, 8).collectives["all-reduce gradients"]
        for stage in (2, 1)
    )
    assert two.seconds == pytest.approx(2 * one.seconds)
    assert one.bytes_per_rank == 2 * 10_000_000 * 7 / 8


def test_a_search_on_the_device_takes_its_time_and_one_on_the_host_hides():
    work = replace(WORK, search=SEARCH)
    assert H100.search_on_device
    alone = step_time(WORK, H100, 1).total_s
    time = step_time(work, H100, 1)
    assert time.total_s == pytest.approx(alone + time.search_s)
    host = replace(H100, search_on_device=False, scan_bytes_per_s=1e12)
    hidden = step_time(work, host, 1)
    assert hidden.search_is_hidden
    assert hidden.total_s == pytest.approx(alone)
    slow = step_time(work, replace(host, scan_bytes_per_s=1e9), 1)
    assert slow.total_s == pytest.approx(slow.search_s)


@pytest.mark.parametrize(("sharing", "group"), [("rank", 1), ("node", 8), ("world", 64)])
def test_a_shared_bank_gets_the_queries_of_all_who_share_it(sharing: str, group: int):
    work = replace(WORK, search=replace(SEARCH, sharing=sharing))
    quick, slow = (step_time(work, replace(H100, query_s=cost), 64) for cost in (0, 1e-3))
    assert slow.search_s - quick.search_s == pytest.approx(2 * 56 * group * 1e-3)
    sent = sum(one.bytes_per_rank for one in quick.search_collectives.values())
    assert sent == 2 * (group - 1) * 56 * (1000 + 60)
    # The scan does not grow: each shard has a part of the entries, for that many more queries.
    assert quick.search_s >= 2 * 56 * 1e8 / H100.scan_bytes_per_s


def test_more_ranks_than_cores_take_turns():
    two = replace(H100, cores=2.0, ranks_per_node=4, trees=False, search_on_device=False)
    one, four = (step_time(WORK, two, ranks) for ranks in (1, 4))
    assert four.compute_s == 2 * one.compute_s
    # An idle core takes the search; where none is idle the step makes room for all of them.
    work = replace(WORK, search=replace(SEARCH, visited_bytes=4e8))
    assert step_time(work, two, 1).search_is_hidden
    both = step_time(work, two, 2)
    on_processor = 2 * 56 * (4e8 / two.scan_bytes_per_s + two.query_s)
    on_processor += 2 * 56 * 10_000 / two.memory_bytes_per_s
    assert both.search_exposed_s == pytest.approx(on_processor, rel=1e-3)
    assert both.search_exposed_s == both.search_taken_s


WIDTH = 320
"""Matrices that ZeRO-3 does not keep whole on every rank, as it does those below 100,000."""


class FrozenBetween(nn.Module):
    """Two trained layers around two frozen ones."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.layers[1:3].requires_grad_(False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            inputs = torch.tanh(layer(inputs.to(layer.weight.dtype)))
        return inputs


def work_and_count(rank: int, world_size: int, dtype: torch.dtype) -> None:
    """Compare the bytes that collectives of a step get with what the model says, stage by stage."""
    counted = count_traffic()
    item, micro_batches = dtype.itemsize, 2
    trained = 2 * (WIDTH + 1) * WIDTH
    for stage in range(4):
        config = RunConfig(
            train=TrainConfig(batch_size=2 * micro_batches * world_size, micro_batch_size=2),
            deepspeed=DeepSpeedConfig(zero_stage=stage),
        )
        settings = deepspeed_json(config, world_size, dtype)
        torch.manual_seed(0)
        engine = initialize(FrozenBetween(), config, settings, total_steps=10)  # type: ignore[arg-type]
        for _ in range(2):  # the first step also learns the order of the parameters
            counted.clear()
            for _ in range(micro_batches):
                loss = engine(torch.randn(2, WIDTH)).float().square().mean()
                engine.backward(loss)
                engine.step()
        work = Workload(
            windows=config.train.batch_size,
            micro_batches=micro_batches,
            flops=1e9,
            zero_stage=stage,
            trained_weights=trained,
            gradient_bytes=trained * item,
            parameter_bytes=trained * item,
            optimizer_bytes=1e6,
            gathered_bytes=4 * WIDTH * WIDTH * item,  # biases are small enough to be kept
        )
        model = step_time(work, H100, world_size).collectives
        both_ways = {"all_reduce": 2, "all_gather_into_tensor": world_size,
                     "reduce_scatter_tensor": 1}  # fmt: skip
        sent = {
            name: size * both_ways[name] * (world_size - 1) / world_size
            for name, (_, size) in counted.items()
        }
        reduced = model["all-reduce gradients" if stage < 3 else "reduce-scatter gradients"]
        name = "all_reduce" if stage < 3 else "reduce_scatter_tensor"
        assert sent[name] == pytest.approx(reduced.bytes_per_rank, rel=1e-3), (stage, sent)
        gathered = model.get("all-gather parameters")
        assert (gathered is None) == ("all_gather_into_tensor" not in sent), (stage, sent)
        if gathered is not None:
            assert sent["all_gather_into_tensor"] == pytest.approx(
                gathered.bytes_per_rank, rel=0.01
            ), (stage, sent)
        engine.close()


@pytest.mark.ranks
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_deepspeed_sends_what_the_model_says(dtype: torch.dtype):
    run_ranks(work_and_count, 2, dtype, timeout_s=400)
