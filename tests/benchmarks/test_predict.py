"""benchmarks/predict.py: what it compares is the same work."""

from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.predict import ROWS, make_series, measure
from model import TimeLLM


def test_its_series_are_long_enough_and_differ():
    frame = make_series(5)
    assert frame.groupby("unique_id").size().tolist() == [ROWS] * 5
    means = frame.groupby("unique_id")["y"].mean()
    assert means.nunique() == 5


def test_both_ways_agree_and_are_timed(further_runs: dict[str, Path]):
    model = TimeLLM.from_pretrained(further_runs["long"])
    frame = pd.read_csv(str(model._run.config.data.path)).groupby("unique_id").tail(60)
    measured = measure(model, frame, sample=2)
    assert measured.difference < 1e-5
    assert measured.together_s > 0
    assert np.isclose(measured.speedup, measured.one_by_one_s / measured.together_s)
