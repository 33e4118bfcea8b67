"""dist_train/explanation.py: what a forecast rests on, in names and dates."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dist_train.data.series import Series
from dist_train.explanation import analogues, explain
from dist_train.loading import LoadedRun, load_run
from dist_train.prediction import SeriesForecast, load_newest, predict


@pytest.fixture(scope="module")
def run(further_runs: dict[str, Path]) -> LoadedRun:
    return load_run(further_runs["long"])


@pytest.fixture(scope="module")
def forecasts(run: LoadedRun) -> list[SeriesForecast]:
    return predict(run, load_newest(run, None), with_evidence=True)


def rows_of(series: Series, start: np.datetime64, count: int) -> np.ndarray:
    first = int(np.searchsorted(series.dates, start))
    return series.values[first : first + count, 0]


def test_a_history_is_where_its_dates_say(run: LoadedRun, forecasts: list[SeriesForecast]):
    assert run.retriever is not None
    by_id = {one.id: one for one in load_newest(run, None).series}
    scales = {one["id"]: (one["mean"][0], one["scale"][0]) for one in run.series["series"]}
    for forecast, row in zip(forecasts, explain(run, forecasts), strict=True):
        assert row.series == forecast.series.id
        assert row.variate == "y"
        assert len(row.histories) == run.config.gram.top_k
        assert forecast.evidence is not None
        assert forecast.evidence.neighbours is not None
        windows = run.retriever.bank.windows(forecast.evidence.neighbours.ids[0]).numpy()
        for window, history in zip(windows, row.histories, strict=True):
            mean, scale = scales[history.series]
            there = rows_of(by_id[history.series], history.start, 48)
            np.testing.assert_allclose((there - mean) / scale, window, atol=1e-5)
            assert history.end - history.start == np.timedelta64(47, "h")
            assert history.future_end - history.end == np.timedelta64(12, "h")
            assert history.future_end <= forecast.series.dates[forecast.end - 48]


def test_weights_and_probabilities_are_shares(run: LoadedRun, forecasts: list[SeriesForecast]):
    for row in explain(run, forecasts):
        assert sum(history.weight for history in row.histories) == pytest.approx(1, abs=1e-5)
        distances = [history.distance for history in row.histories]
        assert distances == sorted(distances)
        for shares, names in ((row.directions, 3), (row.magnitudes, 4)):
            assert shares is not None
            assert len(shares) == names
            assert sum(shares.values()) == pytest.approx(1)
        assert row.gate is not None
        assert 0 < row.gate < 1
        assert row.match is not None


def test_classes_are_those_of_the_trend_head(run: LoadedRun, forecasts: list[SeriesForecast]):
    evidence = forecasts[1].evidence
    assert evidence is not None
    assert evidence.output.trend is not None
    row = explain(run, forecasts)[1]
    assert row.directions is not None
    likely = ("down", "flat", "up")[int(evidence.output.trend.direction[0].argmax())]
    assert max(row.directions, key=row.directions.__getitem__) == likely


def test_analogues_lie_on_the_level_of_the_window(run: LoadedRun, forecasts: list[SeriesForecast]):
    forecast = forecasts[2]
    drawn = analogues(run, forecast)
    assert drawn.shape == (1, run.config.gram.top_k, 12)
    own = forecast.series.values[-48:, 0]
    by_id = {one.id: one for one in load_newest(run, None).series}
    for values, history in zip(drawn[0], explain(run, [forecast])[0].histories, strict=True):
        found = rows_of(by_id[history.series], history.start, 60)
        # Anchored: it goes on from the last value of the window that is forecast.
        shape = (found[48:] - found[47]) / found[:48].std()
        np.testing.assert_allclose((values - own[-1]) / own.std(), shape, atol=1e-3)


def test_where_nothing_was_found_nothing_is_drawn_and_told(
    run: LoadedRun, forecasts: list[SeriesForecast]
):
    forecast = forecasts[0]
    assert forecast.evidence is not None
    neighbours = forecast.evidence.neighbours
    assert neighbours is not None
    none = replace(neighbours, ids=torch.full_like(neighbours.ids, -1))
    without = replace(forecast, evidence=replace(forecast.evidence, neighbours=none))
    assert np.isnan(analogues(run, without)).all()
    assert explain(run, [without])[0].histories == ()


def test_a_run_without_a_memory_has_no_histories(further_runs: dict[str, Path]):
    run = load_run(further_runs["plain"])
    forecasts = predict(run, load_newest(run, None), with_evidence=True)
    first, second = explain(run, forecasts)
    assert (first.gate, first.match, first.histories) == (None, None, ())
    assert second.directions is not None
    assert analogues(run, forecasts[0]).shape == (2, 0, 0)
