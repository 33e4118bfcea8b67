"""model.anchor_random_features, whole: trained on ranks, scored, loaded, exported, refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from dist_train.loading import load_run
from model.config import ModelConfig
from tests.helpers.runs import (
    assert_anchor_gains,
    forecast_of_last_window,
    loaded_and_exported,
    tiny_run,
    train_runs,
    with_memory_read,
)
from tests.helpers.series import write_stamped


def write_bent(path: Path) -> None:
    """Two variates: one whose next value is as far from 0 as this one, one that goes straight."""
    rng = np.random.default_rng(5)
    values = rng.normal(size=(1500, 2))
    for row in range(1, 1500):
        before = np.abs(values[row - 1, 0]) - 1.2, 0.7 * values[row - 1, 1]
        values[row] = -1.6 * before[0] + 0.15 * values[row, 0], before[1] + 0.3 * values[row, 1]
    write_stamped(path, values, "h")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("features")
    write_bent(folder / "bent.csv")
    base = tiny_run(folder)
    plain = replace(
        base, name="plain",
        data=replace(base.data, path=str(folder / "bent.csv"), seq_len=16, pred_len=1),
        model=replace(base.model, prompt="none", anchor_random_features=256),
        train=replace(base.train, max_steps=2, learning_rate=1e-5),
        gram=replace(base.gram, use_gram=False),
    )  # fmt: skip
    own = replace(plain.model, anchor_weights="individual", anchor_calendar="day")
    reading = with_memory_read(replace(plain, model=own))
    train_runs([plain, reading], world_size=2)
    return {one.name: one.run_folder for one in (plain, reading)}


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("plain", "ridge + random features"),
        ("reading", "individual ridge + retrieval + day + random features"),
    ],
)
def test_the_anchor_bends_where_the_series_does(runs: dict[str, Path], name: str, row: str):
    assert_anchor_gains(runs[name], row, 0.7)


@pytest.mark.ranks
@pytest.mark.parametrize("name", ["plain", "reading"])
def test_a_frame_is_forecast_as_its_window_is_scored(
    runs: dict[str, Path], name: str, tmp_path: Path
):
    run = load_run(runs[name])
    wanted_HN, names = forecast_of_last_window(run), ["v0", "v1"]
    frame = pd.read_csv(run.config.data.path or "", parse_dates=["date"]).iloc[:-1]
    models = loaded_and_exported(runs[name], tmp_path / "model")
    for model in models:
        got = model.predict(frame)[names].to_numpy()
        np.testing.assert_allclose(got, wanted_HN, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"anchor_random_features": -1}, r"anchor_random_features must be at least 0, got -1"),
        ({"anchor": "none"}, r"anchor=none, but model\.anchor_random_features=8: .*_features 0\.$"),
        ({"anchor_calendar": "year"}, r"year, model\.anchor_random_features=8: the year goes"),
    ],
)
def test_refuses_features_without_an_anchor_or_with_the_year(keys: dict[str, Any], said: str):
    with pytest.raises(ValueError, match=said):
        ModelConfig(**{"anchor_random_features": 8, **keys})
