"""dist_train/comparison.py: the rows that stand beside a model, all of the same windows."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from dist_train.baselines import fit_ridge
from dist_train.comparison import score_beside_baselines
from dist_train.loading import load_run, load_training_data
from dist_train.retrieval import Retriever
from model.linear_anchor import LinearAnchor


def test_the_rows_are_those_that_training_reported(finished_run: Path):
    run = load_run(finished_run)
    data = load_training_data(run.config, run.series)
    comparison = score_beside_baselines(
        partial(run.forecast, split="test"), run.config, data, "test",
        module=run.module, retriever=run.retriever, prompt_builder=run.prompt_builder,
        ridge=fit_ridge(data), batch_size=50,
    )  # fmt: skip
    scores, reported = (
        comparison.scores,
        json.loads((finished_run / "result.json").read_text())["scores"],
    )
    assert list(scores) == list(reported)
    for name, row in scores.items():
        assert row.num_windows == len(data.windows["test"])
        assert row.mse == pytest.approx(reported[name]["mse"], rel=1e-5)


def test_an_anchor_that_reads_the_memory_has_a_row_of_its_own(finished_run: Path):
    run = load_run(finished_run)
    data = load_training_data(run.config, run.series)
    config = replace(
        run.config,
        model=replace(run.config.model, anchor="ridge_retrieval"),
        gram=replace(run.config.gram, retrieval_key="anchored"),
    )
    retriever = Retriever(data, config.gram, config.bank)
    retriever.refresh({})
    run.module.anchor = LinearAnchor(48, 12, reads_future=True)  # unsolved: repeats the last value
    scores = score_beside_baselines(
        lambda batch: batch.target, config, data, "val", module=run.module, retriever=retriever,
        prompt_builder=None, ridge=fit_ridge(data), batch_size=50,
    ).scores  # fmt: skip
    assert list(scores)[:3] == ["Time-LLM", "ridge + retrieval", "ridge"]
    assert scores["Time-LLM"].mse == 0
    assert scores["ridge + retrieval"].mse == pytest.approx(scores["repeat last"].mse, rel=1e-6)
