"""dist_train/comparison.py: the rows that stand beside a model, all of the same windows."""

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from dist_train import baselines
from dist_train.baselines import fit_ridge
from dist_train.comparison import anchor_name, score_beside_baselines
from dist_train.evaluation import score_split
from dist_train.loading import load_run, load_training_data
from dist_train.retrieval import Retriever
from model.config import Extension
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


@pytest.fixture
def short_dlinear(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is trained in every comparison, and is not what these tests are about."""
    monkeypatch.setattr(baselines, "DLINEAR_STEPS", 1)


@pytest.mark.usefixtures("short_dlinear")
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
    run.module.anchor = LinearAnchor(48, 12, reads_future=True)
    run.module.anchor.parts.retrieved.copy_(torch.eye(12))  # forecasts what is retrieved
    scores = score_beside_baselines(
        lambda batch: batch.target, config, data, "val", module=run.module, retriever=retriever,
        prompt_builder=None, ridge=fit_ridge(data), batch_size=50,
    ).scores  # fmt: skip
    assert list(scores)[:3] == ["Time-LLM", "ridge + retrieval", "ridge"]
    assert scores["Time-LLM"].mse == 0
    alone = {"alone": partial(retriever.forecast, split="val")}
    of_memory = score_split(alone, data, "val", batch_size=50)["alone"].mse()
    assert scores["ridge + retrieval"].mse == pytest.approx(of_memory, rel=1e-5)


@pytest.mark.usefixtures("short_dlinear")
def test_something_is_asked_before_each_batch_of_the_model_and_of_the_baselines(finished_run: Path):
    run, asked = load_run(finished_run), list[None]()
    data = load_training_data(run.config, run.series)
    score_beside_baselines(
        lambda batch: batch.target, run.config, data, "val", module=run.module, retriever=None,
        prompt_builder=None, ridge=fit_ridge(data), batch_size=50,
        between=lambda: asked.append(None),
    )  # fmt: skip
    assert len(asked) == 2 * math.ceil(len(data.windows["val"]) / 50)


@pytest.mark.usefixtures("short_dlinear")
def test_an_anchor_that_is_the_ridge_has_none(finished_run: Path):
    run = load_run(finished_run)
    data = load_training_data(run.config, run.series)
    extension = Extension(calendar="day", random_features=8)
    run.module.anchor = LinearAnchor(48, 12, extension=extension, num_variates=data.num_variates)
    ridge = fit_ridge(data)
    run.module.anchor.parts.window.copy_(ridge.weight)
    scores = score_beside_baselines(
        lambda batch: batch.target, run.config, data, "val", module=run.module, retriever=None,
        prompt_builder=None, ridge=ridge, batch_size=50,
    ).scores  # fmt: skip
    assert list(scores)[:2] == ["Time-LLM", "ridge"]


@pytest.mark.parametrize(
    ("parts", "name"),
    [
        ((), "ridge"),
        (("retrieved",), "ridge + retrieval"),
        (("calendar",), "ridge + day"),
        (("random_features",), "ridge + random features"),
        (("retrieved", "random_features"), "ridge + retrieval + random features"),
        (("retrieved", "calendar", "random_features"), "ridge + retrieval + day + random features"),
    ],
)
@pytest.mark.parametrize("several", [{"num_variates": 3}, {"num_sources": 3}])
def test_a_row_is_named_by_what_validation_took(
    parts: tuple[str, ...], name: str, several: dict[str, int]
):
    """Of what an anchor may read; if one variate or one source does, the anchor does."""
    extension = Extension(calendar="day", random_features=8)
    anchor = LinearAnchor(16, 4, reads_future=True, extension=extension, **several)
    anchor.parts.window.fill_(0.1)
    for part in parts:
        getattr(anchor.parts, part).fill_(0.1)
    assert anchor_name(anchor) == name
    anchor.weight[:2] = 0
    own = "individual " if "num_variates" in several else ""
    assert anchor_name(anchor) == own + name
