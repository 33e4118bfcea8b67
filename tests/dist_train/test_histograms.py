"""dist_train/histograms.py: one value of each row, of what a run builds."""

import numpy as np
import torch

from dist_train.histograms import collect
from dist_train.metric_catalog import HISTOGRAMS
from model.batch import ForecastOutput, RetrievedWindows, TrendPrediction
from model.trend_labels import TrendLabels

OUTPUT = ForecastOutput(
    forecast=torch.zeros(1, 4, 3),
    trend=TrendPrediction(
        direction=torch.tensor([[0.0, 0.0, 0.0], [0.0, 1.0, 0.0], [9.0, 0.0, 0.0]]).log_softmax(1),
        magnitude=torch.zeros(3, 4),
    ),
    labels=TrendLabels(
        change=torch.zeros(3), direction=torch.tensor([0, 1, 2]), magnitude=torch.tensor([3, 0, 1])
    ),
    gate=torch.tensor([0.25, float("nan"), 0.75]),
    match=torch.tensor([0.5, 0.5, 1.0]),
)
RETRIEVED = RetrievedWindows(
    windows=torch.zeros(3, 2, 5), futures=torch.zeros(3, 2, 4), ids=torch.zeros(3, 2).long(),
    valid=torch.tensor([[True, True], [True, False], [False, False]]),
    distances=torch.tensor([[0.5, 7.0], [1.5, 0.0], [0.0, 0.0]]),
)  # fmt: skip


def test_every_row_counts_once_and_what_is_not_finite_or_not_found_never():
    found = collect(OUTPUT, RETRIEVED)
    assert found.keys() == HISTOGRAMS.keys()
    np.testing.assert_allclose(found["histograms/gate"], [0.25, 0.75])
    np.testing.assert_allclose(found["histograms/distance"], [0.5, 1.5])  # the nearest alone
    np.testing.assert_allclose(found["histograms/magnitude"], [0.25] * 3)
    e = np.exp(1)
    expected = [1 / 3, e / (e + 2), 1 / (np.exp(9) + 2)]
    np.testing.assert_allclose(found["histograms/direction"], expected, rtol=1e-5)


def test_what_is_not_built_has_no_histogram():
    assert collect(ForecastOutput(forecast=torch.zeros(1, 4, 3)), None) == {}
    empty = RETRIEVED._replace(valid=torch.zeros(3, 2, dtype=torch.bool))
    assert collect(ForecastOutput(forecast=torch.zeros(1, 4, 3)), empty) == {}
