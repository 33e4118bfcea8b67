"""dist_train/retrieval_ridge.py: the decision is right where retrieval helps and where it harms."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from dist_train import preflight, retrieval_ridge
from dist_train.baselines import fit_ridge_and_extended
from dist_train.config import RunConfig
from dist_train.data.collate import Collator
from dist_train.data.config import DataConfig
from dist_train.data.windows import ForecastData, load_forecast_data
from dist_train.memory_build import MemoryBuilder
from dist_train.retrieval import Retriever
from dist_train.retrieval_ridge import RetrievalVerdict, anchor_forecast, judge_retrieval
from memory_index.config import BankConfig
from memory_index.store import versions
from model.config import GramConfig, ModelConfig
from model.linear_anchor import LinearAnchor
from tests.helpers.forecast_data import wide_data
from tests.helpers.ranks import run_ranks
from tests.helpers.series import random_motifs
from tests.helpers.sources import tiny_corpus_run

L, H = 24, 8
ROWS = 16384  # more than there are
GRAM = GramConfig(use_gram=True, d_repr=24, temperature=0.05)


def autoregression(rows: int = 800, seed: int = 0) -> np.ndarray:
    """Noise that remembers its last value: a linear map knows all there is to know."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(rows, 2))
    for row in range(1, rows):
        values[row] += 0.9 * values[row - 1]
    return values


def data_of(name: str) -> ForecastData:
    values = random_motifs(rows=800, length=L + H) if name == "motifs" else autoregression()
    return wide_data(values, L, H)


def test_retrieval_is_chosen_where_motifs_repeat_and_not_where_nothing_does():
    motifs = judge_retrieval(data_of("motifs"), GRAM, BankConfig(), ROWS)
    assert motifs.helps
    assert motifs.with_retrieval.validation_mse < 0.8 * motifs.without.validation_mse
    noise = judge_retrieval(data_of("noise"), GRAM, BankConfig(), ROWS)
    assert not noise.helps
    assert noise.with_retrieval.validation_mse >= noise.without.validation_mse


def inputs_and_targets(
    retriever: Retriever, split: str, norm: str, *, reads: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Every row of a split, centred as the anchor centres it."""
    windows = retriever.data.windows[split]
    batch = Collator(windows, None)(list(range(len(windows))))
    context, target, retrieved = (
        part.transpose(1, 2).flatten(0, 1).double().numpy()
        for part in (batch.context, batch.target, retriever.forecast(batch, split))
    )
    level = context[:, -1:] if norm == "last" else context.mean(axis=1, keepdims=True)
    inputs = np.concatenate([context, retrieved], axis=1) if reads else context
    return inputs - level, target - level


@pytest.mark.parametrize("name", ["motifs", "noise"])
@pytest.mark.parametrize("reads", [False, True])
def test_both_numbers_are_those_of_an_ordinary_ridge(name: str, reads: bool):
    data = data_of(name)
    verdict = judge_retrieval(data, GRAM, BankConfig(), ROWS)
    fit = verdict.with_retrieval if reads else verdict.without
    retriever = Retriever(
        data, GramConfig(use_gram=True, d_repr=24, temperature=0.05, retrieval_key="anchored"),
        BankConfig(),
    )  # fmt: skip
    retriever.refresh({})
    train = inputs_and_targets(retriever, "train", fit.norm, reads=reads)
    val = inputs_and_targets(retriever, "val", fit.norm, reads=reads)
    ridge = Ridge(alpha=fit.lam, fit_intercept=False, solver="cholesky").fit(*train)
    mse = float(((ridge.predict(val[0]) - val[1]) ** 2).mean())
    assert fit.validation_mse == pytest.approx(mse, rel=1e-5)
    assert fit.validation_mse == min(fit.candidates.values())


def test_the_anchor_alone_scores_what_the_verdict_says():
    data = data_of("motifs")
    fit = judge_retrieval(data, GRAM, BankConfig(), ROWS).with_retrieval
    anchor = LinearAnchor(L, H, reads_future=True)
    anchor.set_solution(fit.weight, fit.norm)
    gram = GramConfig(use_gram=True, d_repr=24, temperature=0.05, retrieval_key="anchored")
    retriever = Retriever(data, gram, BankConfig())
    retriever.refresh({})
    batch = Collator(data.windows["val"], None)(list(range(len(data.windows["val"]))))
    mse = (anchor_forecast(anchor, retriever.forecast, "val")(batch) - batch.target).square().mean()
    assert float(mse) == pytest.approx(fit.validation_mse, rel=1e-4)


@pytest.mark.parametrize("reads", [False, True])
def test_what_weights_leave_over_is_the_target_of_an_ordinary_ridge(reads: bool):
    data = data_of("motifs")
    _, start = fit_ridge_and_extended(data, individual=True)
    verdict = judge_retrieval(data, GRAM, BankConfig(), ROWS, start=start)
    fit = verdict.with_retrieval if reads else verdict.without
    assert (fit.norm, fit.deviations) == (start.norm, start.deviations)
    retriever = Retriever(data, replace(GRAM, retrieval_key="anchored"), BankConfig())
    retriever.refresh({})

    def left(split: str) -> tuple[np.ndarray, np.ndarray]:
        inputs, target = inputs_and_targets(retriever, split, start.norm, reads=reads)
        for variate, weight in enumerate(start.weight.numpy()):
            target[variate::2] -= inputs[variate::2, :L] @ weight.T
        return inputs, target

    found: dict[float, tuple[float, np.ndarray]] = {}
    inputs, target = left("val")
    for lam in retrieval_ridge.LAMBDAS_TRIED:
        ridge = Ridge(alpha=lam, fit_intercept=False, solver="cholesky").fit(*left("train"))
        found[lam] = float(np.square(ridge.predict(inputs) - target).mean()), ridge.coef_
    lam = min(found, key=lambda one: found[one][0])
    assert fit.lam == lam
    assert fit.validation_mse == pytest.approx(found[lam][0], rel=1e-4)
    added = fit.weight - torch.nn.functional.pad(start.weight, (0, H * reads))
    torch.testing.assert_close(
        added, torch.from_numpy(found[lam][1]).expand_as(added), rtol=1e-3, atol=1e-5
    )


def test_large_splits_are_sampled(monkeypatch: pytest.MonkeyPatch):
    data, seen = data_of("noise"), {"train": 0, "val": 0}
    forecast = Retriever.forecast

    def counted(self: Retriever, batch: object, split: str) -> torch.Tensor:
        result = forecast(self, batch, split)  # type: ignore[arg-type]
        seen[split] += len(result)
        return result

    monkeypatch.setattr(Retriever, "forecast", counted)
    monkeypatch.setattr(retrieval_ridge, "VAL_ROWS", 40)
    judge_retrieval(data, GRAM, BankConfig(), 100)
    assert seen == {"train": 50, "val": 20}  # two variates are two rows


def judge_on_ranks(rank: int, world_size: int, out: Path) -> None:
    verdict = judge_retrieval(data_of("motifs"), GRAM, BankConfig(), ROWS)
    fits = (verdict.without, verdict.with_retrieval)
    torch.save([fit.weight for fit in fits], out / f"{world_size}-{rank}.pt")


@pytest.mark.ranks
def test_every_rank_judges_as_one_would(tmp_path: Path):
    for world_size in (1, 2):
        run_ranks(judge_on_ranks, world_size, tmp_path)
    one, first, second = (torch.load(tmp_path / f"{name}.pt") for name in ("1-0", "2-0", "2-1"))
    for wanted, got, other in zip(one, first, second, strict=True):
        assert torch.equal(got, other)
        torch.testing.assert_close(got, wanted, atol=1e-6, rtol=1e-6)


def judge_while_one_rank_reads_slowly(rank: int, world_size: int, root: Path) -> None:
    load = MemoryBuilder._load

    def slow(*given: Any) -> Any:
        time.sleep(0.7 if rank == 1 else 0)
        return load(*given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MemoryBuilder, "_load", slow)
        patch.setattr(retrieval_ridge, "VAL_ROWS", 40)
        judge_retrieval(data_of("noise"), GRAM, BankConfig(), 100, root)


@pytest.mark.ranks
def test_the_bank_of_the_verdict_goes_when_every_rank_is_done_with_it(tmp_path: Path):
    run_ranks(judge_while_one_rank_reads_slowly, 2, tmp_path)
    assert not versions(tmp_path)  # the run has a learned key, and no use for this one


def test_the_bank_of_the_verdict_stays_where_the_run_searches_it(tmp_path: Path):
    anchored = replace(GRAM, retrieval_key="anchored")
    judge_retrieval(data_of("noise"), anchored, BankConfig(), ROWS, tmp_path)
    assert len(versions(tmp_path)) == 1
    judge_retrieval(data_of("noise"), GRAM, BankConfig(path=str(tmp_path)), ROWS)
    assert len(versions(tmp_path)) == 1  # what bank.path names is never deleted


@pytest.mark.parametrize("use_gram", [False, "auto"])
def test_refuses_an_anchor_that_reads_a_memory_that_may_not_be_there(use_gram: bool | str):
    with pytest.raises(
        ValueError,
        match=rf"anchor=ridge_retrieval needs gram\.use_gram=true, got {use_gram}: the anchor",
    ):
        RunConfig(
            model=ModelConfig(anchor="ridge_retrieval"),
            gram=GramConfig(use_gram=use_gram, retrieval_key="anchored"),  # type: ignore[arg-type]
        )


def test_refuses_an_anchor_on_a_key_that_moves():
    with pytest.raises(ValueError, match=r"needs gram\.retrieval_key=anchored, got dual: the"):
        RunConfig(model=ModelConfig(anchor="ridge_retrieval"), gram=GramConfig(use_gram=True))


def corpus_config(folder: Path, percent: int = 100) -> DataConfig:
    config = tiny_corpus_run(folder).data
    assert config.sources is not None
    quarters = replace(config.sources[1], percent=percent, memory_percent=100)
    return replace(config, sources=[config.sources[0], quarters])


@pytest.mark.parametrize("pred_len", [None, 3])
def test_each_source_is_judged_as_it_would_be_alone(tmp_path: Path, pred_len: int | None):
    config = corpus_config(tmp_path)
    assert config.sources is not None
    hours, quarters = config.sources
    sources = [hours, replace(quarters, pred_len=pred_len)]
    data = load_forecast_data(replace(config, sources=sources))
    verdict = judge_retrieval(data, replace(GRAM, retrieval_scope="source"), BankConfig(), ROWS)
    assert list(verdict.by_source) == ["hours", "quarters"]
    for number, (without, reading) in enumerate(verdict.by_source.values()):
        alone = judge_retrieval(data.only(number), GRAM, BankConfig(), ROWS)
        assert without == alone.without.validation_mse
        steps = data.only(number).windows["train"].pred_len
        assert not verdict.own[number].weight[steps:].any()
        assert reading == pytest.approx(alone.with_retrieval.validation_mse, rel=1e-9)
        assert alone.by_source == {}
    assert verdict.off == ("quarters",)
    assert verdict.helps


def test_a_source_that_no_training_sees_is_judged_by_the_others(tmp_path: Path):
    data = load_forecast_data(corpus_config(tmp_path, percent=0))
    verdict = judge_retrieval(data, GRAM, BankConfig(), ROWS)
    assert verdict.by_source["quarters"] == (
        verdict.without.validation_mse,
        verdict.with_retrieval.validation_mse,
    )
    assert verdict.by_source["hours"] == verdict.by_source["quarters"]
    assert verdict.off == ()


def test_memory_helps_as_long_as_it_helps_one_source(tmp_path: Path):
    fit = judge_retrieval(data_of("noise"), GRAM, BankConfig(), 100).without
    both = RetrievalVerdict(without=fit, with_retrieval=fit, by_source={"a": (1, 2), "b": (2, 1)})
    assert both.helps
    assert both.off == ("a",)
    none = replace(both, by_source={"a": (1, 2), "b": (1, 1)})
    assert not none.helps
    assert none.off == ("a", "b")


def judge_corpus_on_ranks(rank: int, world_size: int, folder: Path) -> None:
    data = load_forecast_data(corpus_config(folder))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retrieval_ridge, "VAL_ROWS", 75)
        verdict = judge_retrieval(data, GRAM, BankConfig(shard_group="world"), 301)
    torch.save(verdict.by_source, folder / f"{world_size}-{rank}.pt")


@pytest.mark.ranks
def test_every_rank_judges_each_source_as_one_would(tmp_path: Path):
    corpus_config(tmp_path)
    for world_size in (1, 2):
        run_ranks(judge_corpus_on_ranks, world_size, tmp_path)
    one, first, second = (torch.load(tmp_path / f"{name}.pt") for name in ("1-0", "2-0", "2-1"))
    assert first == second
    for name, numbers in one.items():
        assert numbers == pytest.approx(first[name], rel=1e-6)


def test_the_anchor_alone_is_that_of_each_windows_source(tmp_path: Path):
    data = preflight.check(tiny_corpus_run(tmp_path)).data
    anchor = LinearAnchor(24, 8, num_sources=2)
    weights = [torch.full((8, 24), value) for value in (0.1, -0.1)]
    for source, weight in enumerate(weights):
        anchor.set_solution(weight, "last", source)
    windows = data.windows["val"]
    batch = Collator(windows, None)([0, len(windows) - 1])
    found = anchor_forecast(anchor, None, "val")(batch)
    for row, weight in enumerate(weights):
        context = batch.context[row, :, 0]
        expected = context[-1] + weight @ (context - context[-1])
        torch.testing.assert_close(found[row, :, 0], expected)
    with pytest.raises(ValueError, match="sources is missing"):
        anchor(batch.context[:, :, 0])
