"""dist_train/forecast_panel.py: fixed validation windows, in original units."""

import numpy as np
import torch
from torch import Tensor

from dist_train import forecast_panel
from dist_train.calibration import calibrate
from dist_train.data.collate import Collator, WindowBatch
from dist_train.retrieval import Retriever
from memory_index.config import BankConfig
from model.batch import RetrievedWindows
from model.config import GramConfig
from model.pattern_encoder import build_encoder
from tests.helpers.forecast_data import wide_data

L, H = 16, 6
DATA = wide_data(
    np.cumsum(np.random.default_rng(0).normal(size=(400, 2)), axis=0) * [1.0, 50.0] + [5, 900], L, H
)


def repeat_last(batch: WindowBatch) -> tuple[Tensor, RetrievedWindows | None]:
    return batch.context[:, -1:].expand(-1, H, -1), None


def test_the_windows_are_those_of_the_file_and_the_same_each_time():
    first = forecast_panel.collect(repeat_last, DATA, None, count=3, batch_size=2, anchored=True)
    again = forecast_panel.collect(repeat_last, DATA, None, count=3, batch_size=2, anchored=True)
    series, windows = DATA.series_set.series[0], DATA.windows[forecast_panel.SPLIT]
    assert [window.title.rsplit(": ")[-1] for window in first] == ["v0", "v1", "v0"]
    for place, (window, other) in enumerate(zip(first, again, strict=True)):
        start = int(np.searchsorted(series.dates, window.dates[0]))
        column = series.values[:, place % 2]
        np.testing.assert_allclose(window.history, column[start : start + L], rtol=1e-5)
        np.testing.assert_allclose(window.truth, column[start + L : start + L + H], rtol=1e-5)
        np.testing.assert_allclose(window.forecast, column[start + L - 1], rtol=1e-5)
        np.testing.assert_array_equal(window.forecast, other.forecast)
        assert window.neighbours is None
    begins = {windows.locate(int(number))[1] for number in windows.even_sample(3)}
    assert {int(np.searchsorted(series.dates, window.dates[0])) for window in first} == begins
    # Nothing of it, the horizon included, is in the test split.
    test_start = DATA.windows["test"].locate(0)[1] + L
    assert max(begins) + L + H <= test_start


def test_retrieved_futures_stand_where_retrieval_alone_forecasts():
    for key in ("anchored", "dual"):
        gram = GramConfig(use_gram=True, retrieval_key=key, top_k=1, d_repr=16)
        retriever = Retriever(DATA, gram, BankConfig())
        torch.manual_seed(0)
        retriever.refresh(build_encoder(gram, L).state_dict())

        def alone(batch: WindowBatch) -> tuple[Tensor, RetrievedWindows | None]:
            forecast = retriever.forecast(batch, forecast_panel.SPLIT)  # noqa: B023
            return forecast, retriever.retrieve(batch, forecast_panel.SPLIT)  # noqa: B023

        drawn = forecast_panel.collect(
            alone, DATA, None, count=2, batch_size=4, anchored=key == "anchored"
        )
        for window in drawn:
            assert window.neighbours is not None
            assert window.neighbours.shape == (1, H)  # the only one, and so the forecast
            np.testing.assert_allclose(window.neighbours[0], window.forecast, rtol=1e-4)
        retriever.close()


def test_intervals_are_those_of_the_calibration_in_original_units():
    known = calibrate(lambda batch: repeat_last(batch)[0], DATA, batch_size=16)
    drawn = forecast_panel.collect(
        repeat_last, DATA, None, count=3, batch_size=2, anchored=True, calibration=known
    )
    batch = Collator(DATA.windows[forecast_panel.SPLIT], None)(
        [int(n) for n in DATA.windows[forecast_panel.SPLIT].even_sample(3)]
    )
    channels = DATA.channels_of(batch.window_ids.numpy(), forecast_panel.SPLIT)
    lower, upper = known.interval(
        repeat_last(batch)[0].double().numpy(), batch.context.numpy(), channels, 80
    )
    for place, window in enumerate(drawn):
        assert window.interval is not None
        scaler, variate = DATA.scalers[0], place % 2
        for bound, expected in zip(window.interval, (lower, upper), strict=True):
            np.testing.assert_allclose(bound, scaler.inverse(expected[place])[:, variate])
        assert (window.interval[0] < window.forecast).all()
    _, caption = forecast_panel.draw(drawn, 50, 30)
    assert caption == "validation windows, the model of step 30, 80 % intervals"


def test_a_picture_is_a_png_with_a_caption():
    windows = forecast_panel.collect(repeat_last, DATA, None, count=1, batch_size=1, anchored=True)
    png, caption = forecast_panel.draw(windows, 50)
    assert png.startswith(b"\x89PNG")
    assert caption == "validation windows after step 50"
