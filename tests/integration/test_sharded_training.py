"""Training with the memory shared between ranks, searched ahead and encoded in the background."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dist_train import distributed, preflight
from dist_train.checkpoint import load_checkpoint
from dist_train.config import RunConfig
from dist_train.data.collate import Collator
from dist_train.data.windows import load_forecast_data
from dist_train.loading import load_run
from dist_train.memory_build import MemoryBuilder
from dist_train.retrieval import Retriever
from dist_train.session import train_and_score
from dist_train.trainer import Trainer
from memory_index.bank import MemoryBank
from memory_index.config import BankConfig
from memory_index.sharded_index import SearchError, ShardedIndex
from memory_index.store import versions
from model.config import GramConfig
from tests.helpers.ranks import run_ranks
from tests.helpers.runs import losses, tiny_run

pytestmark = pytest.mark.ranks

STEPS, EVERY, LAG = 13, 4, 2
GRAM = GramConfig(use_gram=True, d_repr=16, refresh_every=EVERY, refresh_lag=LAG)


def run_of(folder: Path, name: str, **changes: Any) -> RunConfig:
    base = tiny_run(folder, name=name, gram=GRAM, bank=BankConfig(shard_group="world"))
    train = replace(base.train, max_steps=STEPS, learning_rate=1e-2, eval_every=5)
    return replace(base, **{"train": train, **changes})


class Watch:
    """Which encoder's keys each step was searched in, by step."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.searched: list[str] = []
        step = Trainer._train_step

        def watched(trainer: Trainer, batches: Any, neighbours: Any, number: int) -> None:
            assert trainer.retriever is not None
            self.searched.append(trainer.retriever.fingerprint)
            step(trainer, batches, neighbours, number)

        patch.setattr(Trainer, "_train_step", watched)


def slow_on_the_second_rank(patch: pytest.MonkeyPatch) -> None:
    make = MemoryBuilder.open

    def slow(builder: MemoryBuilder, state: Any) -> Any:
        if distributed.rank() == distributed.world_size() - 1:
            time.sleep(1.0)
        return make(builder, state)

    patch.setattr(MemoryBuilder, "open", slow)


def on_demand(patch: pytest.MonkeyPatch) -> None:
    """Search when the neighbours are asked for, not before."""

    class Later:
        def __init__(self, *given: Any) -> None:
            self._given = given

        def result(self) -> Any:
            retriever, batch, split = self._given
            return retriever.fetch(retriever.search_batch(batch, split))

    patch.setattr(Retriever, "retrieve_ahead", lambda *given: Later(*given))


CHANGES = {"slow": slow_on_the_second_rank, "on-demand": on_demand}


def train_all(rank: int, world_size: int, configs: list[RunConfig]) -> None:
    """Train one run after the other, some of them changed; write what was searched."""
    for config in configs:
        with pytest.MonkeyPatch.context() as patch:
            change = CHANGES.get(config.name.rsplit("-", 1)[0])
            if change is not None:
                change(patch)
            watch = Watch(patch)
            train_and_score(config, preflight.check(config))
        (config.run_folder / f"searched-{rank}.json").write_text(json.dumps(watch.searched))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of this file; one start of DeepSpeed for each number of ranks."""
    folder = tmp_path_factory.mktemp("sharded")
    lists = BankConfig(shard_group="world", index="ivf_flat")
    for world_size, names in ((1, ("plain", "again")), (2, ("plain", "again", *CHANGES))):
        configs = [run_of(folder, f"{name}-{world_size}") for name in names]
        configs.append(run_of(folder, f"lists-{world_size}", bank=lists))
        run_ranks(train_all, world_size, configs, timeout_s=250)
    return folder / "runs"


def searched(runs: Path, name: str, rank: int = 0) -> list[str]:
    made: list[str] = json.loads((runs / name / f"searched-{rank}.json").read_text())
    return made


def test_two_runs_are_equal_bit_for_bit(runs: Path):
    for ranks in (1, 2):
        assert losses(runs / f"plain-{ranks}") == losses(runs / f"again-{ranks}")
        assert searched(runs, f"plain-{ranks}") == searched(runs, f"again-{ranks}")


def test_the_keys_are_swapped_at_the_same_steps_however_long_they_take(runs: Path):
    for rank in (0, 1):
        found = searched(runs, "plain-2", rank)
        assert searched(runs, "slow-2", rank) == found == searched(runs, "plain-2", 0)
    swaps = [step for step in range(1, STEPS) if found[step] != found[step - 1]]
    assert swaps == [EVERY + LAG, 2 * EVERY + LAG]
    assert losses(runs / "slow-2") == losses(runs / "plain-2")


def test_searching_ahead_finds_what_searching_on_demand_finds(runs: Path):
    assert losses(runs / "on-demand-2") == losses(runs / "plain-2")


@pytest.mark.parametrize("name", ["plain", "lists"])
def test_two_ranks_train_as_one_does(runs: Path, name: str):
    assert losses(runs / f"{name}-2") == pytest.approx(losses(runs / f"{name}-1"), abs=1e-5)


def test_staleness_is_logged_in_steps(runs: Path):
    lines = map(json.loads, (runs / "plain-1/metrics.jsonl").read_text().splitlines())
    stale = [line["retrieval/staleness_steps"] for line in lines if "train/loss" in line]
    # Step s is searched in the keys of the encoder after step 4 from step 7 on, and so forth.
    assert stale == [1, 2, 3, 4, 5, 6, 3, 4, 5, 6, 3, 4, 5]


def test_the_bank_of_the_best_step_stays_and_a_loaded_run_searches_it(
    runs: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = runs / "plain-1"
    best = load_checkpoint(folder / "best").manifest["bank"]
    kept = versions(folder / "bank")
    assert best in kept
    assert len(kept) <= 3  # the live one, the best one, and one that was never swapped in
    encoded: list[int] = []
    read = MemoryBank.windows
    monkeypatch.setattr(
        MemoryBank, "windows", lambda bank, ids: encoded.append(ids.numel()) or read(bank, ids)
    )
    run = load_run(folder)
    assert run.retriever is not None
    assert run.retriever.live.version == best
    assert not encoded
    data = load_forecast_data(run.config.data)
    windows = data.windows["test"]
    batch = Collator(windows, run.prompt_builder)(list(range(len(windows))))
    mse = (run.forecast(batch, "test") - batch.target).square().mean()
    result = json.loads((folder / "result.json").read_text())
    assert float(mse) == pytest.approx(result["test_mse"], abs=1e-5)


def fail_in_search(rank: int, world_size: int, config: RunConfig) -> None:
    calls: list[float] = []
    search = ShardedIndex.search

    def failing(index: ShardedIndex, *given: Any) -> Any:
        calls.append(time.monotonic())
        if len(calls) == 8 and rank == 1:
            index.shard.search = None  # type: ignore[method-assign,assignment]
        return search(index, *given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ShardedIndex, "search", failing)
        with pytest.raises(SearchError, match="failed on rank 1: TypeError"):
            train_and_score(config, preflight.check(config))
    assert time.monotonic() - calls[7] < 10


def test_a_rank_that_fails_in_its_search_ends_all_with_the_same_error(tmp_path: Path):
    run_ranks(fail_in_search, 2, run_of(tmp_path, "failing"), timeout_s=100)


def search_in_nodes(
    rank: int, world_size: int, config: RunConfig, folder: Path, nodes: list[str]
) -> None:
    data = load_forecast_data(config.data)
    group = "node" if len(nodes) == world_size else "world"
    with pytest.MonkeyPatch.context() as patch:
        if group == "node":
            patch.setenv("GROUP_RANK", nodes[rank])  # as torchrun numbers its nodes
        for index in ("exact", "flat", "ivf_flat"):
            bank = BankConfig(index=index, shard_group=group)  # type: ignore[arg-type]
            retriever = Retriever(data, replace(GRAM, retrieval_key="anchored"), bank)
            retriever.refresh({})
            windows = data.windows["train"]
            # Ranks ask for different numbers of windows, one for none.
            ids = list(range(0, len(windows), 40))[: 3 * rank] if world_size > 1 else []
            every = {number: list(range(0, len(windows), 40))[: 3 * number] for number in range(4)}
            asked = {rank: ids} if world_size > 1 else every
            for number, chosen in asked.items():
                found = retriever.search_batch(Collator(windows, None)(chosen), "train")
                name = f"{index}-{number}-{world_size}-{group}.pt"
                torch.save((found.ids, found.weights), folder / name)
            retriever.close()
            if world_size > 1:
                assert retriever.live.index.group.size == (2 if group == "node" else world_size)


def test_every_way_of_sharing_finds_what_one_rank_finds(tmp_path: Path):
    config = run_of(tmp_path, "searched")
    run_ranks(search_in_nodes, 1, config, tmp_path, [])
    run_ranks(search_in_nodes, 3, config, tmp_path, [])
    run_ranks(search_in_nodes, 4, config, tmp_path, ["0", "0", "1", "1"])
    for index in ("exact", "flat", "ivf_flat"):
        for number in range(4):
            wanted = torch.load(tmp_path / f"{index}-{number}-1-world.pt")
            for shared in ("3-world", "4-node"):
                path = tmp_path / f"{index}-{number}-{shared}.pt"
                if path.exists():
                    ids, weights = torch.load(path)
                    assert torch.equal(ids, wanted[0]), (index, number, shared)
                    torch.testing.assert_close(weights, wanted[1], atol=1e-6, rtol=1e-5)
