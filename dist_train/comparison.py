"""Score a model beside its baselines on the same windows, for training and evaluate alike."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from dist_train.baselines import all_baselines
from dist_train.config import RunConfig
from dist_train.data.prompts import PromptBuilder
from dist_train.data.windows import ForecastData
from dist_train.evaluation import (
    Forecast,
    Observer,
    finish_scores,
    score_split,
    scores_by_source,
)
from dist_train.metrics import Scores
from dist_train.retrieval import Retriever
from dist_train.retrieval_ridge import anchor_forecast
from model.anchor_fit import AnchorFit
from model.forecaster import Forecaster
from model.linear_anchor import LinearAnchor


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Scores of several forecasters on the same windows."""

    scores: dict[str, Scores]
    """By the name of the row; with several sources, means over them."""

    by_source: dict[str, dict[str, Scores]]
    """By the name of the source, then of the row; empty where there is one source."""


def score_beside_baselines(
    forecast: Forecast,
    config: RunConfig,
    data: ForecastData,
    split: str,
    *,
    module: Forecaster,
    retriever: Retriever | None,
    prompt_builder: PromptBuilder | None,
    ridge: AnchorFit,
    by_source: Sequence[AnchorFit] = (),
    batch_size: int,
    between: Callable[[], None] | None = None,
    observers: Sequence[Observer] = (),
    watch: Callable[[Mapping[str, Forecast]], dict[str, Forecast]] = dict,
) -> Comparison:
    """Score everything on all windows of a split; collective.

    Args:
        forecast: The whole model.
        config: The run.
        data: The series.
        split: val or test.
        module: The model, for its anchor.
        retriever: Its memory; None where it has none.
        prompt_builder: Makes its prompts; None where it has none.
        ridge: The ridge that stands beside every result.
        by_source: That of each source, where there are several.
        batch_size: Windows per forward pass of one rank.
        between: Called before each batch, on every rank as often; may be collective, and raise.
        observers: Told of every window and its forecast by the whole model.
        watch: Puts something between each forecaster and its scoring, by name.

    Returns:
        The model first; then, where its anchor is more than the ridge, that anchor alone, by a
        name that says what it reads; and the baselines.
    """
    score = partial(
        score_split,
        data=data,
        split=split,
        batch_size=batch_size,
        num_workers=config.data.num_workers,
        between=between,
    )
    sums = score(watch({"Time-LLM": forecast}), prompt_builder=prompt_builder, observers=observers)
    others = all_baselines(data, ridge, config.train.seed, by_source)
    if module.anchor is not None and (name := anchor_name(module.anchor)) not in others:
        retrieve = None
        if config.model.reads_future:
            assert retriever is not None
            retrieve = retriever.forecast
        others = {name: anchor_forecast(module.anchor, retrieve, split)} | others
    sums |= score(watch(others))
    several = len(data.sources) > 1
    return Comparison(
        scores=finish_scores(sums, data),
        by_source=scores_by_source(sums, data) if several else {},
    )


def anchor_name(anchor: LinearAnchor) -> str:
    """Of the row of an anchor: validation may have taken less than it may read."""
    parts, weight = anchor.parts, anchor.weight
    own = anchor.num_variates > 1 and bool((weight != weight[0]).any())
    more = {
        "retrieval": parts.retrieved,
        anchor.extension.calendar: parts.calendar,
        "random features": parts.random_features,
    }
    read = [name for name, weights in more.items() if weights.any()]
    return " + ".join(["individual ridge" if own else "ridge", *read])
