"""Training with the memory shared between ranks, searched ahead and encoded in the background."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dist_train import baselines, distributed, memory_build, preflight, report
from dist_train.checkpoint import load_checkpoint
from dist_train.config import RunConfig
from dist_train.data.collate import Collator
from dist_train.data.windows import load_forecast_data
from dist_train.loading import load_run
from dist_train.memory_build import MemoryBuilder
from dist_train.retrieval import Retriever
from dist_train.session import train_and_score
from dist_train.trainer import Trainer
from memory_index import placement
from memory_index.bank import MemoryBank
from memory_index.config import BankConfig
from memory_index.store import BankFolder, versions
from model.config import GramConfig
from model.pattern_encoder import fingerprint
from tests.helpers.ranks import run_ranks
from tests.helpers.runs import losses, tiny_run

pytestmark = [pytest.mark.ranks, pytest.mark.slow]

STEPS, EVERY, LAG = 11, 4, 2
GRAM = GramConfig(use_gram=True, d_repr=16, refresh_every=EVERY, refresh_lag=LAG)
SHARED = BankConfig(shard_group="world")
LISTS = replace(SHARED, index="ivf_flat")


def run_of(folder: Path, name: str, **changes: Any) -> RunConfig:
    base = tiny_run(folder, name=name, gram=GRAM, bank=SHARED)
    train = replace(base.train, max_steps=STEPS, learning_rate=1e-2, eval_every=5)
    return replace(base, **{"train": train, **changes})


class Watch:
    """What a run did with its memory."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.searched: list[str] = []
        """By step: the encoder whose keys were searched when the search was really done."""
        self.trained: list[str] = []
        """By step: the encoder after it; the first is the one that the training began with."""
        self.built = 0
        fit, step = Trainer.fit, Trainer._train_step
        search, build = Retriever._search, memory_build.build_bank

        def encoder_of(trainer: Trainer) -> str:
            return fingerprint(trainer.engine.module.memory.encoder)  # type: ignore[union-attr]

        def watched_fit(trainer: Trainer) -> Any:
            self.searched.clear()  # the alarm for leaks has searched too
            self.trained.append(encoder_of(trainer))
            return fit(trainer)

        def watched_step(trainer: Trainer, *given: Any) -> None:
            step(trainer, *given)
            self.trained.append(encoder_of(trainer))

        def watched_search(retriever: Retriever, *given: Any, past_only: bool) -> Any:
            if not past_only:
                self.searched.append(retriever.fingerprint)
            return search(retriever, *given, past_only=past_only)

        def watched_build(*given: Any) -> None:
            self.built += 1
            build(*given)

        patch.setattr(Trainer, "fit", watched_fit)
        patch.setattr(Trainer, "_train_step", watched_step)
        patch.setattr(Retriever, "_search", watched_search)
        patch.setattr(memory_build, "build_bank", watched_build)


def slow_on_the_second_rank(patch: pytest.MonkeyPatch) -> None:
    """Let a bank take longer than the steps until it is due."""
    make = MemoryBuilder.open

    def slow(builder: MemoryBuilder, state: Any) -> Any:
        if distributed.rank() == 1:
            time.sleep(0.5)
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
    """Train one run after the other, some of them changed; write what was watched."""
    placement.SMALLEST_CHUNK = 64  # so that every rank has some of the 722 entries
    baselines.fit_dlinear = lambda data, seed: baselines.repeat_last  # type: ignore[assignment]
    report.draw_figures = lambda *given: {}  # neither is looked at here
    for config in configs:
        with pytest.MonkeyPatch.context() as patch:
            watch = Watch(patch)
            CHANGES.get(config.name, lambda patch: None)(patch)
            train_and_score(config, preflight.check(config))
        content = json.dumps(vars(watch))
        (config.run_folder / f"watched-{rank}.json").write_text(content)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of this file; one start of DeepSpeed for each number of ranks."""
    folder = tmp_path_factory.mktemp("sharded")
    dropout = replace(run_of(folder, "random").model, dropout=0.2)
    waits = replace(GRAM, refresh_lag=0)
    banks = BankConfig(path=str(folder / "banks"))
    run_ranks(train_all, 1, [
        run_of(folder, "one"),
        run_of(folder, "lists-one", bank=LISTS),
        run_of(folder, "waits", gram=waits, bank=banks),
        run_of(folder, "found", gram=waits, bank=replace(banks, build="never")),
    ], timeout_s=400)  # fmt: skip
    run_ranks(train_all, 2, [
        run_of(folder, "two"),
        run_of(folder, "lists-two", bank=LISTS),
        *(run_of(folder, name, model=dropout) for name in ("random", *CHANGES)),
    ], timeout_s=400)  # fmt: skip
    return folder / "runs"


def watched(runs: Path, name: str, rank: int = 0) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((runs / name / f"watched-{rank}.json").read_text())
    return content


def test_runs_are_equal_bit_for_bit_however_long_a_bank_takes(runs: Path):
    # Dropout is drawn meanwhile: whatever else drew from its generator would show.
    assert losses(runs / "random") != pytest.approx(losses(runs / "two"), abs=1e-4)
    assert losses(runs / "slow") == losses(runs / "random")


def test_searching_ahead_finds_what_searching_on_demand_finds(runs: Path):
    assert losses(runs / "on-demand") == losses(runs / "random")


@pytest.mark.parametrize("name", ["", "lists-"])
def test_two_ranks_train_as_one_does(runs: Path, name: str):
    assert losses(runs / f"{name}two") == pytest.approx(losses(runs / f"{name}one"), abs=1e-5)


def step_of_the_keys(step: int, lag: int) -> int:
    """After how many steps the encoder was taken that step number ``step``, from 0, searches in."""
    return max(taken for taken in range(0, STEPS, EVERY) if taken == 0 or taken + lag <= step)


@pytest.mark.parametrize(
    ("name", "lag", "ranks"),
    [("one", LAG, 1), ("waits", 0, 1), ("found", 0, 1)]
    + [(name, LAG, 2) for name in ("two", "lists-two", "random", *CHANGES)],
)
def test_each_step_searches_in_the_keys_of_the_encoder_that_is_due(
    runs: Path, name: str, lag: int, ranks: int
):
    for rank in range(ranks):
        told = watched(runs, name, rank)
        trained = told["trained"]
        assert len(trained) == len(set(trained)) == STEPS + 1
        assert told["searched"] == [trained[step_of_the_keys(n, lag)] for n in range(STEPS)]
    assert [step_of_the_keys(n, LAG) for n in range(STEPS)] == [0] * 6 + [4] * 4 + [8]
    assert [step_of_the_keys(n, 0) for n in range(STEPS)] == [0] * 4 + [4] * 4 + [8] * 3


@pytest.mark.parametrize(("name", "lag"), [("one", LAG), ("waits", 0)])
def test_staleness_is_logged_in_steps(runs: Path, name: str, lag: int):
    lines = map(json.loads, (runs / name / "metrics.jsonl").read_text().splitlines())
    stale = [line["retrieval/staleness_steps"] for line in lines if "train/loss" in line]
    # A line is written after its step, before the keys are swapped.
    assert stale == [n + 1 - step_of_the_keys(n, lag) for n in range(STEPS)]


def test_only_the_bank_of_the_best_step_stays_and_a_loaded_run_searches_it(
    runs: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = runs / "one"
    best = load_checkpoint(folder / "best").manifest["bank"]
    assert versions(folder / "bank") == [best]
    # It was kept while later ones were searched, not built again in the end.
    told = watched(runs, "one")
    assert BankFolder(folder / "bank", best).open().fingerprint != told["searched"][-1]
    assert told["built"] == 3
    encoded: list[int] = []
    read = MemoryBank.windows
    monkeypatch.setattr(placement, "SMALLEST_CHUNK", 64)
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


def test_banks_under_a_path_stay_and_serve_another_run_that_may_not_build(runs: Path):
    waits, found = watched(runs, "waits"), watched(runs, "found")
    banks = runs.parent / "banks"
    made = {BankFolder(banks, version).open().fingerprint for version in versions(banks)}
    assert made == {waits["trained"][step] for step in (0, 4, 8)}
    assert waits["built"] == len(versions(banks)) == 3
    assert found["built"] == 0
    assert losses(runs / "found") == losses(runs / "waits")
    assert not (runs / "waits/bank").exists()
