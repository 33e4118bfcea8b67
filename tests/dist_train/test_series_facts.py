"""dist_train/series_facts.py: what a checkpoint knows is enough to scale a series."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dist_train.data.config import DataConfig, DataError
from dist_train.data.windows import load_forecast_data
from dist_train.series_facts import KnownSeries, describe, descriptions, frequencies_by_id
from tests.helpers.series import write_series
from tests.helpers.sources import run_over_sources


def test_one_series_is_known_under_any_name(tmp_path: Path):
    path = write_series(tmp_path / "series.csv")
    data = load_forecast_data(DataConfig(path=str(path), seq_len=48, pred_len=12))
    facts = json.loads(json.dumps(describe(data)))  # through JSON, as in a checkpoint
    known = KnownSeries(facts).find("another file")
    np.testing.assert_array_equal(known.scaler.mean, data.scalers[0].mean)
    np.testing.assert_array_equal(known.scaler.scale, data.scalers[0].scale)
    assert known.columns == ("v0", "v1")


def test_many_series_are_known_by_id(tmp_path: Path):
    dates = pd.date_range("2020-01-01", periods=300, freq="h")
    frames = [
        pd.DataFrame({"unique_id": name, "ds": dates, "y": np.arange(300.0) * factor})
        for name, factor in (("a", 1.0), ("b", 2.0))
    ]
    pd.concat(frames).to_csv(tmp_path / "long.csv", index=False)
    config = DataConfig(path=str(tmp_path / "long.csv"), seq_len=24, pred_len=6)
    facts = describe(load_forecast_data(config))
    known = KnownSeries(facts)
    assert known.find("b").scaler.scale == pytest.approx(2 * known.find("a").scaler.scale)
    assert [known.find(name).number for name in "ab"] == [0, 1]
    with pytest.raises(DataError, match=r"series 'c': the run was not trained on it; it knows 2"):
        known.find("c")


def test_the_one_series_of_a_long_file_has_its_name():
    entry = {"id": "a", "columns": ["y"], "mean": [0.0], "scale": [1.0]}
    with pytest.raises(DataError, match=r"series 'b': the run was not trained on it"):
        KnownSeries({"name": "file", "series": [entry]}).find("b")


def test_a_series_is_known_with_its_source(tmp_path: Path):
    data = load_forecast_data(run_over_sources(tmp_path).data)
    facts = json.loads(json.dumps(describe(data)))
    known = KnownSeries(facts)
    places = {name: known.find(name) for name in ("hourly/v1", "quarter/v0", "daily")}
    assert [one.number for one in places.values()] == [1, 2, 5]
    assert [one.source for one in places.values()] == [0, 1, 2]
    assert [one.frequency for one in places.values()] == ["h", "15min", "D"]
    frequencies = frequencies_by_id(facts)
    assert list(frequencies.values()) == ["h"] * 2 + ["15min"] * 3 + ["D"]
    assert frequencies["quarter/v0"] == "15min"
    assert descriptions(facts) == ["The hourly series", "The quarter series", "The daily series"]
