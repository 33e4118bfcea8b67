"""dist_train/series_facts.py: what a checkpoint knows is enough to scale a series."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dist_train.data.config import DataConfig, DataError
from dist_train.data.windows import load_forecast_data
from dist_train.series_facts import describe, known_series
from tests.helpers.series import write_series


def test_one_series_is_known_under_any_name(tmp_path: Path):
    path = write_series(tmp_path / "series.csv")
    data = load_forecast_data(DataConfig(path=str(path), seq_len=48, pred_len=12))
    facts = json.loads(json.dumps(describe(data)))  # through JSON, as in a checkpoint
    scaler, columns = known_series(facts, "another file")
    np.testing.assert_array_equal(scaler.mean, data.scalers[0].mean)
    np.testing.assert_array_equal(scaler.scale, data.scalers[0].scale)
    assert columns == ["v0", "v1"]


def test_many_series_are_known_by_id(tmp_path: Path):
    dates = pd.date_range("2020-01-01", periods=300, freq="h")
    frames = [
        pd.DataFrame({"unique_id": name, "ds": dates, "y": np.arange(300.0) * factor})
        for name, factor in (("a", 1.0), ("b", 2.0))
    ]
    pd.concat(frames).to_csv(tmp_path / "long.csv", index=False)
    config = DataConfig(path=str(tmp_path / "long.csv"), seq_len=24, pred_len=6)
    facts = describe(load_forecast_data(config))
    assert known_series(facts, "b")[0].scale == pytest.approx(2 * known_series(facts, "a")[0].scale)
    with pytest.raises(DataError, match=r"series 'c': the run was not trained on it; it knows 2"):
        known_series(facts, "c")
