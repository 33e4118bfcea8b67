"""A rank whose memory fails ends the run on every rank, with one message, at once."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dist_train import memory_build, preflight
from dist_train.config import RunConfig, config_to_yaml
from dist_train.session import train_and_score
from dist_train.trainer import Trainer
from memory_index import placement
from memory_index.config import BankConfig
from memory_index.groups import OtherRankError
from memory_index.sharded_index import SearchError, ShardedIndex
from model.config import GramConfig
from tests.helpers.jobs import run_job
from tests.helpers.ranks import run_ranks
from tests.helpers.runs import tiny_run

pytestmark = pytest.mark.ranks

EVERY, LAG = 3, 2
LIMIT_S = 40.0
"""From the failure to the end of the last rank: seconds, and three times that on a slow machine."""


def run_of(folder: Path, name: str, **refresh: int) -> RunConfig:
    gram = GramConfig(use_gram=True, d_repr=16, **refresh)
    base = tiny_run(folder, name=name, gram=gram, bank=BankConfig(shard_group="world"))
    return replace(base, train=replace(base.train, max_steps=9))


class Fault:
    """Breaks something on one rank; knows when, and after how many steps."""

    def __init__(self, patch: pytest.MonkeyPatch, failing: bool) -> None:
        self.failing, self.calls, self.steps = failing, 0, 0
        self.at = 0.0
        step = Trainer._train_step

        def counted(trainer: Trainer, *given: Any) -> None:
            step(trainer, *given)
            self.steps += 1

        patch.setattr(Trainer, "_train_step", counted)

    def in_search(self, patch: pytest.MonkeyPatch) -> None:
        """Fail in the first search after two steps."""
        search = ShardedIndex.search

        def failing(index: ShardedIndex, *given: Any) -> Any:
            if self.steps == 2 and not self.at:
                self.at = time.monotonic()
                if self.failing:
                    index.shard.search = None  # type: ignore[method-assign,assignment]
            return search(index, *given)

        patch.setattr(ShardedIndex, "search", failing)

    def in_build(self, patch: pytest.MonkeyPatch) -> None:
        """Fail while the second bank is encoded in the background."""
        build = memory_build.build_bank

        def broken(ids: torch.Tensor) -> torch.Tensor:
            raise MemoryError(f"no room for {len(ids)} keys")

        def failing(folder: Any, plan: Any, encode: Any, *given: Any) -> None:
            self.calls += 1
            if self.calls == 2:
                self.at = time.monotonic()
                encode = broken if self.failing else encode
            build(folder, plan, encode, *given)

        patch.setattr(memory_build, "build_bank", failing)


def fail(rank: int, world_size: int, configs: list[RunConfig]) -> None:
    placement.SMALLEST_CHUNK = 64
    cases: list[tuple[Callable[..., None], tuple[type[Exception], ...], str, int]] = [
        (Fault.in_search, (SearchError, SearchError), "failed on rank 1: TypeError: ", 2),
        (Fault.in_build, (OtherRankError, MemoryError), "no room for ", EVERY + LAG),
    ]
    for config, (break_it, expected, message, steps) in zip(configs, cases, strict=True):
        with pytest.MonkeyPatch.context() as patch:
            fault = Fault(patch, failing=rank == 1)
            break_it(fault, patch)
            with pytest.raises(expected[rank], match=message):
                train_and_score(config, preflight.check(config))
        # One step more where the search was for the batch after the current one.
        assert steps <= fault.steps <= steps + 1
        assert time.monotonic() - fault.at < LIMIT_S
        assert not (config.run_folder / "result.json").exists()


def test_a_failure_on_one_rank_ends_all_of_them(tmp_path: Path):
    build = run_of(tmp_path, "build", refresh_every=EVERY, refresh_lag=LAG)
    run_ranks(fail, 2, [run_of(tmp_path, "search"), build], timeout_s=400)


FAILS_IN_ITS_SEARCH = """
import os, sys, time
from memory_index import placement
from memory_index.sharded_index import ShardedIndex
placement.SMALLEST_CHUNK = 64
search, calls = ShardedIndex.search, 0
def failing(index, *given):
    global calls
    calls += 1
    if calls == 8:
        print("broken at", time.time(), flush=True)
        if os.environ["RANK"] == "1":
            index.shard.search = None
    return search(index, *given)
ShardedIndex.search = failing
from dist_train.cli import main
raise SystemExit(main(["train", "--config", sys.argv[1]]))
"""


@pytest.mark.slow
def test_the_processes_of_a_job_end_with_one_line_each(tmp_path: Path):
    path = tmp_path / "run.yaml"
    path.write_text(config_to_yaml(run_of(tmp_path, "job")))
    ranks = run_job(FAILS_IN_ITS_SEARCH, str(path))
    ended = time.time()
    for rank in ranks:
        assert rank.code == 2, rank.error
        assert "error: the search in the memory failed on rank 1: TypeError: " in rank.error
        assert "Traceback" not in rank.error
        (line,) = [line for line in rank.out.splitlines() if line.startswith("broken at")]
        assert ended - float(line.split()[-1]) < LIMIT_S
