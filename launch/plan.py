"""``timellm plan``: what a run needs, before it is started. docs/plan.md explains the tables."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from dist_train.config import ConfigError, RunConfig, check_batch_size
from dist_train.parameter_counts import count_parameters
from dist_train.shapes import PUBLISHED, BackboneShape, shape_of
from launch import plan_tables
from launch.bank_plan import BankPlan, plan_bank
from launch.data_facts import DataFacts, data_facts, limited
from launch.hardware import HARDWARE, Hardware
from launch.memory_plan import ITEM_BYTES, MemoryPlan, plan_memory
from launch.plan_request import GIB, PlanRequest, find_backbone, read_request
from launch.recommend import Recommendation, recommend
from launch.step_time import StepTime, step_time, workload_of

BANK_SIZES = (10**5, 10**6, 10**7, 10**8, 10**9)
BACKBONES = (
    "openai-community/gpt2", "HuggingFaceTB/SmolLM2-1.7B", "Qwen/Qwen2.5-7B",
    "meta-llama/Llama-2-13b-hf", "Qwen/Qwen2.5-32B", "meta-llama/Llama-3.1-70B",
    "Qwen/Qwen2.5-72B",
)  # fmt: skip
LAYOUTS: tuple[tuple[int, Literal["none", "optimizer", "all"]], ...] = (
    (0, "none"), (1, "none"), (2, "none"), (3, "none"), (2, "optimizer"), (3, "all"),
)  # fmt: skip
"""ZeRO stage and offload that are compared."""


class Planner:
    """Plans one run, and variations of it."""

    def __init__(self, config: RunConfig, request: PlanRequest) -> None:
        """Find backbone and data; nothing of the weights is read."""
        self.request = request
        self.shape, self.content = find_backbone(config)
        if config.model.d_ff > self.shape.d_llm:
            raise ConfigError(
                f"model.d_ff={config.model.d_ff}: the head reads that many features of a position, "
                f"and {config.backbone.name} has {self.shape.d_llm}; use at most that."
            )
        self.facts: DataFacts = data_facts(
            config, variates=request.num_variates, rows=request.num_rows
        )
        self.precision = _precision(config, request)
        self.hardware: Hardware | None = _hardware(request)

    @property
    def on_gpu(self) -> bool:
        """Whether the run is planned for GPUs."""
        return self.request.device == "gpu"

    def on_ranks(self, config: RunConfig, ranks: int) -> RunConfig:
        """The run on so many ranks.

        With a range each rank keeps its micro-batch: train.micro_batch_size, else what the batch
        is on the first number of ranks. The batch grows once it is one of these on each rank.
        """
        if not self.request.is_range:
            return config
        together = check_batch_size(config.train, self.request.gpus[0]) * ranks
        train = dataclasses.replace(
            config.train,
            batch_size=-(-config.train.batch_size // together) * together,
            micro_batch_size=together // ranks,
        )
        return dataclasses.replace(config, train=train)

    def entries(self, config: RunConfig) -> int:
        """Entries of the bank of a configuration; 0: no memory."""
        return limited(config, self.request.bank_entries or self.facts.bank_entries)

    def bank(self, config: RunConfig, ranks: int, entries: int | None = None) -> BankPlan | None:
        """The bank; of the run's own size where none is given."""
        entries = self.entries(config) if entries is None else entries
        if entries == 0:
            return None
        queries = check_batch_size(config.train, ranks) * self.facts.num_variates
        return plan_bank(
            config, entries, queries, ranks=ranks, ranks_per_node=self.request.gpus_per_node,
            on_gpu=self.on_gpu,
        )  # fmt: skip

    def memory(
        self,
        config: RunConfig,
        ranks: int,
        shape: BackboneShape | None = None,
        content: Mapping[str, Any] | None = None,
    ) -> MemoryPlan:
        """Memory of a rank; of another backbone where one is given."""
        from launch.step_memory import step_memory  # needs torch

        if shape is None:
            shape = dataclasses.replace(self.shape, num_layers=_layers(config, self.shape))
        content = content or self.content
        micro = check_batch_size(config.train, ranks)
        bank = self.bank(config, ranks)
        return plan_memory(
            config, shape, count_parameters(config, shape),
            step_memory(config, content, self.facts.num_variates, micro, self.precision),
            ranks=ranks, precision=self.precision, device=self.request.device,
            runtime=self.request.runtime_gib * GIB, num_variates=self.facts.num_variates,
            bank=None if bank is None else bank.memory,
        )  # fmt: skip

    def time(self, config: RunConfig, ranks: int) -> StepTime | None:
        """Time of a step; None where nobody said how fast a rank is."""
        if self.hardware is None:
            return None
        work = workload_of(
            config, dataclasses.replace(self.shape, num_layers=_layers(config, self.shape)), ranks,
            variates=self.facts.num_variates, bank_entries=self.entries(config),
            ranks_per_node=self.request.gpus_per_node, item_bytes=ITEM_BYTES[self.precision],
            on_gpu=self.on_gpu,
        )  # fmt: skip
        return step_time(work, self.hardware, ranks)

    def layouts(self, config: RunConfig, ranks: int) -> dict[str, MemoryPlan]:
        """Memory of a rank by ZeRO stage and offload, the rest of the run as it is."""
        found = {}
        for stage, offload in LAYOUTS:
            if offload != "none" and not self.on_gpu:
                continue
            zero = dataclasses.replace(config.deepspeed, zero_stage=stage, offload=offload)
            other = dataclasses.replace(config, deepspeed=zero)
            name = f"ZeRO-{stage}" + ("" if offload == "none" else f", offload {offload}")
            found[name] = self.memory(other, ranks)
        return found

    def banks(self, config: RunConfig, ranks: int) -> dict[int, BankPlan | str]:
        """Banks from 1e5 to 1e9 entries; why not, where one does not fit."""
        found: dict[int, BankPlan | str] = {}
        for entries in BANK_SIZES if config.gram.use_gram is not False else ():
            try:
                bank = self.bank(config, ranks, entries)
                assert bank is not None
                found[entries] = bank
            except ValueError as error:
                found[entries] = str(error).split(". ")[0]
        return found

    def backbones(self, config: RunConfig, ranks: int) -> dict[str, tuple[MemoryPlan, MemoryPlan]]:
        """Memory with whole language models, as they are and in 4 bits."""
        found = {}
        for name in BACKBONES:
            content = PUBLISHED[name]
            layers = int(content.get("n_layer") or content["num_hidden_layers"])
            shape = shape_of(content, layers, name)
            backbone = dataclasses.replace(config.backbone, name=name, llm_layers=layers)
            plans = [
                self.memory(
                    dataclasses.replace(
                        config, backbone=dataclasses.replace(backbone, load_in_4bit=packed)
                    ),
                    ranks, shape, content,
                )
                for packed in (False, True)
            ]  # fmt: skip
            found[name] = (plans[0], plans[1])
        return found

    def recommendation(self, config: RunConfig, ranks: int) -> Recommendation | None:
        """Settings that fit the GPU; None where its memory was not said."""
        if self.request.gpu_memory_gib is None:
            return None
        return recommend(
            config, lambda other: self.memory(other, ranks), self.request.gpu_memory_gib * GIB,
            ranks=ranks, on_gpu=self.on_gpu,
        )  # fmt: skip

    def measure(self, config: RunConfig, ranks: int) -> dict[str, Any]:
        """Time a micro-batch here, and take the rate that it achieved for the estimate."""
        from launch.measured_step import measure_step

        micro = check_batch_size(config.train, ranks)
        found = measure_step(config, self.facts.num_variates, micro, self.precision)
        work = workload_of(
            config, self.shape, ranks, variates=self.facts.num_variates,
            item_bytes=ITEM_BYTES[self.precision], on_gpu=self.on_gpu,
        )  # fmt: skip
        rate = work.flops / found.step_s
        self.hardware = _with_rate(self.request, rate)
        return {"step_s": found.step_s, "flops_per_s": rate, "device": found.device,
                "gpu_bytes": found.gpu_bytes, "windows": micro}  # fmt: skip


def plan(argv: Sequence[str]) -> int:
    """Plan a run and print the tables; returns the exit code."""
    config, request = read_request(argv)
    planner = Planner(config, request)
    ranks = request.gpus[0]
    check_batch_size(config.train, ranks)
    result: dict[str, Any] = {}
    say = plan_tables.say
    memory = planner.memory(planner.on_ranks(config, ranks), ranks)
    counts = count_parameters(config, planner.shape)
    say(plan_tables.opening(config, request, planner.shape, planner.facts, planner.precision))
    say(plan_tables.parameters(counts))
    say(plan_tables.memory(memory, ranks, config))
    say(plan_tables.layouts(planner.layouts(planner.on_ranks(config, ranks), ranks), ranks))
    most = request.gpus[-1]  # where sharding shows
    own = planner.bank(planner.on_ranks(config, most), most)
    say(plan_tables.banks(own, planner.banks(planner.on_ranks(config, most), most), most))
    if request.measure:
        result["measured"] = planner.measure(planner.on_ranks(config, ranks), ranks)
        say(plan_tables.measured(result["measured"]))
    rows = []
    for count in request.gpus:
        at = planner.on_ranks(config, count)
        rows.append((count, at, planner.memory(at, count), planner.time(at, count)))
    say(plan_tables.ranks(rows, planner.facts, request))
    if request.backbones:
        backbones = planner.backbones(planner.on_ranks(config, ranks), ranks)
        say(plan_tables.backbones(backbones))
        result["backbones"] = {
            name: {"total_bytes": whole.total, "total_bytes_4bit": packed.total}
            for name, (whole, packed) in backbones.items()
        }
    recommended = planner.recommendation(planner.on_ranks(config, ranks), ranks)
    if recommended is not None:
        say(plan_tables.recommendation(recommended, request, memory))
        result["recommendation"] = {
            "fits": recommended.fits,
            "settings": {k: v for rung in recommended.taken for k, v in rung.settings.items()},
            "total_bytes": recommended.plan.total,
        }
    if request.json:
        print(json.dumps(result | _as_json(planner, config, memory, own, rows)), flush=True)
    return 0


def _as_json(
    planner: Planner, config: RunConfig, memory: MemoryPlan, bank: BankPlan | None, rows: list[Any]
) -> dict[str, Any]:
    counts = count_parameters(config, planner.shape)
    return {
        "name": config.name,
        "device": planner.request.device,
        "precision": planner.precision,
        "trained_parameters": counts.trained_total,
        "frozen_parameters": counts.frozen_total,
        "memory": {
            "total_bytes": memory.total,
            "peak_phase": memory.peak_phase,
            "phases": {phase: dict(parts) for phase, parts in memory.phases.items()},
            "host": dict(memory.host),
        },
        "bank": None if bank is None else {
            "entries": bank.entries, "kind": bank.choice.kind, "group": bank.choice.group,
            "index_bytes": bank.index_bytes, "rank_bytes": bank.rank_bytes,
            "query_bytes_sent": bank.query_bytes_sent, "answer_bytes_sent": bank.answer_bytes_sent,
            "search_cpu_s": bank.search_cpu_s,
        },
        "ranks": [
            {
                "ranks": count, "batch_size": at.train.batch_size, "total_bytes": plan.total,
                "step_s": None if time is None else time.total_s,
                "epoch_s": None if time is None else time.epoch_s(planner.facts.train_windows),
            }
            for count, at, plan, time in rows
        ],
    }  # fmt: skip


def _layers(config: RunConfig, shape: BackboneShape) -> int:
    return min(config.backbone.llm_layers, shape.num_layers)


def _precision(config: RunConfig, request: PlanRequest) -> str:
    """What ``auto`` becomes: on a CPU float32, as nobody has measured it yet."""
    if config.train.precision != "auto":
        return config.train.precision
    if request.device == "cpu":
        return "fp32"
    return "fp16" if request.hardware == "t4" else "bf16"


def _hardware(request: PlanRequest) -> Hardware | None:
    if request.flops is not None:
        return _with_rate(request, request.flops)
    if request.hardware is None:
        return None
    chosen = HARDWARE[request.hardware]
    return dataclasses.replace(chosen, ranks_per_node=request.gpus_per_node)


def _with_rate(request: PlanRequest, flops: float) -> Hardware:
    """The named hardware's links, the h100's where none is, and a rate of its own."""
    links = HARDWARE[request.hardware or "h100"]
    return dataclasses.replace(links, flops=flops, ranks_per_node=request.gpus_per_node)
