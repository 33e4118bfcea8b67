"""model.anchor_weights=individual, whole: trained on ranks, scored, loaded, exported, refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

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

PERIODS = (24, 7, 24)


def write_unlike(path: Path) -> None:
    """Three variates: one goes back to where it came from, one goes on, one returns in 7 hours."""
    rng = np.random.default_rng(3)
    values = rng.normal(size=(700, 3))
    for row in range(24, 700):
        for variate, period in enumerate(PERIODS):
            values[row, variate] = (-1) ** variate * values[row - period, variate] + 0.3 * values[
                row, variate
            ]
    write_stamped(path, values, "h")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("individual")
    write_unlike(folder / "unlike.csv")
    base = tiny_run(folder)
    plain = replace(
        base, name="plain",
        data=replace(base.data, path=str(folder / "unlike.csv"), seq_len=24, pred_len=6),
        model=replace(base.model, prompt="none", anchor_weights="individual"),
        train=replace(base.train, max_steps=2, learning_rate=1e-5),
        gram=replace(base.gram, use_gram=False),
    )  # fmt: skip
    reading = with_memory_read(plain)
    train_runs([plain, reading], world_size=2)
    return {one.name: one.run_folder for one in (plain, reading)}


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("name", "row"), [("plain", "individual ridge"), ("reading", "individual ridge + retrieval")]
)
def test_the_anchor_is_better_than_shared_weights(runs: dict[str, Path], name: str, row: str):
    assert_anchor_gains(runs[name], row, 0.7)


@pytest.mark.ranks
@pytest.mark.parametrize("name", ["plain", "reading"])
def test_a_frame_is_forecast_as_its_window_is_scored(
    runs: dict[str, Path], name: str, tmp_path: Path
):
    run = load_run(runs[name])
    wanted_HN, names = forecast_of_last_window(run), ["v0", "v1", "v2"]
    frame = pd.read_csv(run.config.data.path or "", parse_dates=["date"]).iloc[:-6]
    models = loaded_and_exported(runs[name], tmp_path / "model")
    for model in models:
        got = model.predict(frame)[names].to_numpy()
        np.testing.assert_allclose(got, wanted_HN, rtol=1e-5, atol=1e-5)
        # Weights belong to names, not to places.
        turned = model.predict(frame[["date", "v2", "v0", "v1"]])[names].to_numpy()
        np.testing.assert_allclose(turned, wanted_HN, rtol=1e-5, atol=1e-5)
    if name == "plain":
        with pytest.raises(ValueError, match=r"individual pass the 3 variates"):
            models[1](torch.zeros(1, 24, 2))


def test_refuses_weights_of_variates_without_an_anchor_or_with_a_calendar():
    keys: dict[str, Any]
    for keys, said in (
        ({"anchor": "none"}, r"model\.anchor=none, but model\.anchor_weights=individual: use"),
        ({"anchor_calendar": "year"}, r"individual, model\.anchor_calendar=year: the year goes"),
    ):
        with pytest.raises(ValueError, match=said):
            ModelConfig(anchor_weights="individual", **keys)
