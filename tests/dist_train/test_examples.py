"""dist_train/examples.py: pictures show what was forecast, bounded and retrieved."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from dist_train.baselines import fit_ridge, repeat_last, ridge_forecast
from dist_train.calibration import calibrate
from dist_train.data.collate import Collator, WindowBatch
from dist_train.data.windows import ForecastData
from dist_train.examples import MAX_NEIGHBOURS, ExampleMaker
from dist_train.retrieval import Retriever
from memory_index.config import BankConfig
from model.config import GramConfig
from tests.helpers.forecast_data import data_of_sources, long_data, source_of, wide_data
from tests.helpers.series import random_motifs


def zeros(batch: WindowBatch) -> Tensor:
    return torch.zeros_like(batch.target)


@pytest.fixture(scope="module")
def data() -> ForecastData:
    return wide_data(random_motifs(rows=1600, variates=3), seq_len=48, pred_len=12)


def test_the_example_is_the_middle_test_window_in_original_units(data: ForecastData):
    ridge = fit_ridge(data)
    shown = ExampleMaker(zeros, [ridge], data).middle()
    windows, series, scaler = data.windows["test"], data.series_set.series[0], data.scalers[0]
    _, start = windows.locate(len(windows) // 2)
    np.testing.assert_array_equal(shown.dates, series.dates[start : start + 60])
    np.testing.assert_allclose(shown.history, series.values[start : start + 48], rtol=1e-4)
    assert shown.truth is not None
    np.testing.assert_allclose(shown.truth, series.values[start + 48 : start + 60], rtol=1e-4)
    assert shown.columns == ("v0", "v1", "v2")
    # A forecast of 0 on the standardised scale is the mean of the training rows.
    mean = np.broadcast_to(scaler.mean, (12, 3))
    np.testing.assert_allclose(shown.forecasts["Time-LLM"], mean, rtol=1e-6)
    batch = Collator(windows, None)([len(windows) // 2])
    expected = scaler.inverse(ridge_forecast(ridge)(batch)[0].double().numpy())
    np.testing.assert_allclose(shown.forecasts["ridge"], expected, rtol=1e-5)
    assert shown.intervals == {}


def test_samples_carry_the_calibrated_intervals_in_original_units(data: ForecastData):
    known = calibrate(repeat_last, data, batch_size=64)
    samples = ExampleMaker(repeat_last, [fit_ridge(data)], data, calibration=known).samples()
    assert [sample.variate for sample in samples] == [0, 1, 2]
    windows, scaler = data.windows["test"], data.scalers[0]
    window = len(windows) // 4
    context, _ = windows.batch([window])
    forecast = np.repeat(context[:, -1:], 12, axis=1)
    lower, upper = known.interval(forecast, context, data.channels_of([window], "test"), 95)
    shown = samples[0].example.intervals[95.0]
    np.testing.assert_allclose(shown[0], scaler.inverse(lower[0]), rtol=1e-6)
    np.testing.assert_allclose(shown[1], scaler.inverse(upper[0]), rtol=1e-6)
    assert all(sample.neighbours == [] for sample in samples)


def test_a_split_of_one_window_and_one_variate_has_one_sample():
    rows = np.random.default_rng(0).normal(size=(300, 1))
    short = wide_data(rows, seq_len=48, pred_len=30)
    assert len(short.windows["test"]) == 31
    shorter = wide_data(rows[:150], seq_len=24, pred_len=15)
    assert len(shorter.windows["test"]) == 16
    samples = ExampleMaker(zeros, [fit_ridge(shorter)], shorter).samples()
    assert [sample.variate for sample in samples] == [0, 0, 0]


@pytest.mark.parametrize("key", ["anchored", "dual"])
def test_neighbours_are_past_histories_on_the_scale_of_the_window(data: ForecastData, key: str):
    gram = GramConfig(use_gram=True, retrieval_key=key, top_k=20, d_repr=16)  # type: ignore[arg-type]
    retriever = Retriever(data, gram, BankConfig())
    encoder = retriever.builder._encoder
    retriever.refresh({} if key == "anchored" else dict(encoder.state_dict()))
    samples = ExampleMaker(zeros, [fit_ridge(data)], data, retriever=retriever).samples()
    retriever.close()
    series = data.series_set.series[0]
    for sample in samples:
        assert 1 <= len(sample.neighbours) <= MAX_NEIGHBOURS
        history = sample.example.history[:, sample.variate]
        for one in sample.neighbours:
            date, _, column = one.name.rpartition(", ")
            first = int(np.flatnonzero(series.dates == np.datetime64(date, "ns"))[0])
            assert first + 12 <= data.split_rows[0]["train"][1]
            number = series.columns.index(column)
            source = series.values[first - 48 : first + 12, number]
            # The same shape: shifted and scaled, history and future alike.
            assert np.corrcoef(source, one.values)[0, 1] == pytest.approx(1, abs=1e-4)
            shown = one.values[:48]
            assert shown.std() == pytest.approx(history.std(), rel=1e-2)
            level = (shown[-1], history[-1]) if key == "anchored" else (
                shown.mean(), history.mean())  # fmt: skip
            assert level[0] == pytest.approx(level[1], abs=0.05 * history.std())
        dates = [one.name for one in sample.neighbours]
        assert len(set(dates)) == len(dates)


def test_neighbours_may_come_from_another_source():
    rng = np.random.default_rng(2)
    sources = []
    for name, begin, freq in (("hours", "2020-06-01", "h"), ("days", "2020-01-01", "D")):
        dates = pd.date_range(begin, periods=400, freq=freq).as_unit("ns").to_numpy()
        sources.append(source_of(name, [(dates, rng.normal(size=400).cumsum())]))
    data = data_of_sources(sources, 24, 6)
    gram = GramConfig(
        use_gram=True, retrieval_key="anchored", retrieval_scope="across", d_repr=8, top_k=20
    )
    retriever = Retriever(data, gram, BankConfig())
    retriever.refresh({})
    samples = ExampleMaker(zeros, [fit_ridge(data)], data, retriever=retriever).samples()
    retriever.close()
    found = 0
    for sample in samples:
        other = {"hours/0": 1, "days/0": 0}[sample.example.columns[0]]
        series = data.series_set.series[other]
        for one in sample.neighbours:
            date, _, name = one.name.rpartition(", ")
            assert name == series.id
            first = int(np.flatnonzero(series.dates == np.datetime64(date, "ns"))[0])
            source = series.values[first - 24 : first + 6, 0]
            assert np.corrcoef(source, one.values)[0, 1] == pytest.approx(1, abs=1e-4)
            found += 1
    assert found


def test_many_series_are_told_by_their_ids():
    rng = np.random.default_rng(1)
    parts = [(0, np.cumsum(rng.normal(size=400))) for _ in range(3)]
    data = long_data(parts, 24, 6)
    samples = ExampleMaker(zeros, [fit_ridge(data)], data).samples()
    assert [sample.example.columns for sample in samples] == [("s0",), ("s1",), ("s2",)]


def test_a_shorter_horizon_is_drawn_as_far_as_it_goes():
    dates = pd.date_range("2020", periods=1600, freq="h").to_numpy()
    values = random_motifs(rows=1600, variates=2)
    long = source_of("long", [(dates[:400], values[:400, 0])])
    short = source_of("short", [(dates, values[:, 1])], pred_len=5)
    data = data_of_sources([long, short], 48, 12)
    gram = GramConfig(use_gram=True, retrieval_key="anchored", d_repr=48, retrieval_scope="both")
    retriever = Retriever(data, gram, BankConfig(), None)
    retriever.refresh({})
    known = calibrate(repeat_last, data, batch_size=64)
    maker = ExampleMaker(
        zeros, [fit_ridge(data.only(0))] * 2, data, retriever=retriever, calibration=known
    )
    for sample in maker.samples()[1:]:
        one = sample.example
        assert one.columns == ("short/0",)
        assert one.truth is not None
        parts = [one.truth, *one.forecasts.values()]
        parts += [bound for pair in one.intervals.values() for bound in pair]
        assert {len(part) for part in parts} == {5}
        assert all(np.isfinite(part).all() for part in parts)
        assert len(one.dates) == len(one.history) + 5
        assert {len(history.values) for history in sample.neighbours} == {48 + 5}
