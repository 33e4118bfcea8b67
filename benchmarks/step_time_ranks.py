"""The processes of the step-time benchmark: ranks of a real training, and one that is alone."""

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.rank_processes import TIMEOUT
from benchmarks.retrieval_step import EngineStep
from benchmarks.step_setting import MasterOptimizer
from dist_train import distributed, precision
from dist_train.build import build_forecaster, build_prompt_builder
from dist_train.config import RunConfig
from dist_train.data.collate import Collator, WindowBatch
from dist_train.data.series import load_series
from dist_train.data.windows import build_forecast_data
from dist_train.objective import loss_terms
from dist_train.optim import build_optimizer
from dist_train.retrieval import Retriever
from dist_train.trend_fit import training_changes
from model.backbone_files import locate_backbone
from model.losses import total_loss

BATCHES = 8
SMALL, LARGE = 64, 8 << 20
"""Bytes of the messages that latency and bandwidth are measured with."""


class TrainingRank:
    """A rank of a real DeepSpeed training with a live memory."""

    def __init__(self, folder: Path, config: RunConfig, rank: int, world_size: int) -> None:
        """Join the other ranks and build everything; collective.

        Args:
            folder: Where they meet.
            config: Of the whole job.
            rank: This one.
            world_size: Of the job.
        """
        _enter(folder, rank, world_size)
        self.traffic_log = count_traffic()
        config = _config_on(config, world_size)
        data = build_forecast_data(config.data, load_series(config.data))
        self.retriever = Retriever(data, config.gram, config.bank)
        self.retriever.refresh({})
        dtype = precision.resolve_dtype(config.train.precision)
        self.training = EngineStep(config, data, dtype)
        micro = config.train.batch_size // world_size
        self.batches = _batches(config, data, self.training.prompt_builder, micro, rank)
        self.number = 0
        self.ahead = self.retriever.retrieve_ahead(self.batches[0], "train")

    def steps(self, count: int) -> float:
        """Mean seconds of some optimizer steps, each with the search for the next; collective."""
        distributed.barrier()
        began = time.perf_counter()
        for _ in range(count):
            current = self.ahead.result()
            batch, following = (self.batches[(self.number + i) % BATCHES] for i in (0, 1))
            self.ahead = self.retriever.retrieve_ahead(following, "train")
            self.training.step(batch, current, self.number)
            distributed.any_rank(False)  # as the training asks for signals
            self.number += 1
        self.ahead.result()
        distributed.barrier()
        return (time.perf_counter() - began) / count

    def traffic(self) -> dict[str, list[int]]:
        """Calls and bytes of the collectives of one step, by name; collective."""
        self.ahead.result()
        self.traffic_log.clear()
        self.steps(1)
        return self.traffic_log.copy()

    def collective_s(self, kind: str, size: int, count: int) -> float:
        """As :func:`collective_s`; collective."""
        return collective_s(kind, size, count)


class LoneRank:
    """The same model and memory in plain PyTorch, on one core: what a rank computes."""

    def __init__(self, folder: Path, config: RunConfig, micro: int) -> None:
        """Build everything.

        Args:
            folder: Of its own.
            config: As of the training.
            micro: Windows of a forward pass.
        """
        _enter(folder, 0, 1)
        config = _config_on(config, 1)
        self.config = config
        data = build_forecast_data(config.data, load_series(config.data))
        self.retriever = Retriever(data, config.gram, config.bank)
        self.retriever.refresh({})
        files = locate_backbone(config.backbone.name)
        prompts = build_prompt_builder(config, files, data.descriptions)
        dtype = precision.resolve_dtype(config.train.precision)
        model = build_forecaster(config, files, dtype, prompts)
        if model.trend is not None:
            model.trend.thresholds.fit(training_changes(data.windows["train"]))
        self.model = model.to(dtype).train()
        self.optimizer = MasterOptimizer(
            self.model.trained_parameters().values(),
            lambda masters: build_optimizer(masters, config.train),
        )
        self.batches = _batches(config, data, prompts, micro, 0)
        self.found = [self.retriever.retrieve(batch, "train") for batch in self.batches]
        self.number = 0

    def steps(self, count: int) -> dict[str, float]:
        """Mean seconds of forward with backward, of the update, and of a search."""
        compute = optimizer = 0.0
        for _ in range(count):
            began = time.perf_counter()
            self._loss().backward()  # type: ignore[no-untyped-call]
            between = time.perf_counter()
            self.optimizer.step()
            self.optimizer.zero_grad()
            compute += between - began
            optimizer += time.perf_counter() - between
            self.number += 1
        began = time.perf_counter()
        for number in range(count):
            self.retriever.retrieve(self.batches[number % BATCHES], "train")
        search = time.perf_counter() - began
        return {
            "compute_s": compute / count,
            "optimizer_s": optimizer / count,
            "search_s": search / count,
        }

    def compute_times(self, count: int) -> list[float]:
        """Seconds of forward with backward, one after the other."""
        times = []
        for _ in range(count):
            began = time.perf_counter()
            self._loss().backward()  # type: ignore[no-untyped-call]
            times.append(time.perf_counter() - began)
            self.optimizer.zero_grad()
            self.number += 1
        return times

    def facts(self) -> dict[str, Any]:
        """What the workload is made of."""
        inputs = self.batches[0].inputs
        prompt = 0 if inputs.prompt_ids is None else inputs.prompt_ids.shape[1]
        return {
            "variates": inputs.context.shape[2],
            "prompt_tokens": prompt,
            "entries": len(self.retriever.bank),
            "index": self.retriever.live.parts[0].choice.kind,
            "trained": sum(p.numel() for p in self.model.trained_parameters().values()),
        }

    def _loss(self) -> Tensor:
        place = self.number % BATCHES
        batch, found = self.batches[place], self.found[place]
        output = self.model(batch.inputs, found, batch.target)
        terms = loss_terms(output, batch.target, found, self.config)
        return total_loss(terms, self.number, self.config.train.warmup_steps)


def collective_s(kind: str, size: int, count: int) -> float:
    """Mean seconds of a gloo collective; collective.

    Args:
        kind: all_reduce, all_gather or reduce_scatter.
        size: Bytes of the whole.
        count: Calls.
    """
    ranks = dist.get_world_size()
    whole = torch.zeros(max(ranks, size // 4 // ranks * ranks))
    part = torch.zeros(len(whole) // ranks)
    calls: dict[str, Callable[[], object]] = {
        "all_reduce": partial(dist.all_reduce, whole),
        "all_gather": partial(dist.all_gather_into_tensor, whole, part),
        "reduce_scatter": partial(dist.reduce_scatter_tensor, part, whole),
    }
    calls[kind]()
    distributed.barrier()
    began = time.perf_counter()
    for _ in range(count):
        calls[kind]()
    return (time.perf_counter() - began) / count


def _enter(folder: Path, rank: int, world_size: int) -> None:
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(rank), DS_ACCELERATOR="cpu"
    )
    torch.set_num_threads(1)
    meeting = f"file://{folder / f'rendezvous-{world_size}'}"
    dist.init_process_group("gloo", meeting, rank=rank, world_size=world_size, timeout=TIMEOUT)


def _config_on(config: RunConfig, world_size: int) -> RunConfig:
    """The same windows per rank on any number of ranks."""
    train = replace(config.train, batch_size=config.train.batch_size * world_size)
    return replace(config, train=train, runs_dir=tempfile.mkdtemp(prefix="timellm-step-time-"))


def _batches(
    config: RunConfig, data: Any, prompts: Any, micro: int, rank: int
) -> list[WindowBatch]:
    windows = data.windows["train"]
    collator = Collator(windows, prompts)
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(rank)).tolist()
    return [collator(order[number * micro :][:micro]) for number in range(BATCHES)]


def count_traffic() -> dict[str, list[int]]:
    """Count the calls of torch's collectives from now on, and the bytes that go in."""
    log: dict[str, list[int]] = {}

    def counted(name: str, call: Callable[..., Any], place: int) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            given = [*args, *kwargs.values()]  # DeepSpeed names some, torch's order stays
            tensor = given[place]
            if isinstance(tensor, Tensor):
                entry = log.setdefault(name, [0, 0])
                entry[0] += 1
                entry[1] += tensor.numel() * tensor.element_size()
            return call(*args, **kwargs)

        return wrapper

    for name, place in (
        ("all_reduce", 0), ("reduce", 0), ("broadcast", 0), ("all_gather", 1),
        ("all_gather_into_tensor", 1), ("reduce_scatter_tensor", 1), ("all_to_all_single", 1),
    ):  # fmt: skip
        setattr(dist, name, counted(name, getattr(dist, name), place))
    return log
