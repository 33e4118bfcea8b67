"""model.anchor_calendar, whole: trained, scored, loaded, forecast with, exported."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from dist_train.loading import load_run
from model.config import Calendar, ModelConfig
from tests.helpers.runs import (
    assert_anchor_gains,
    forecast_of_last_window,
    loaded_and_exported,
    tiny_run,
    train_runs,
    with_memory_read,
)
from tests.helpers.series import write_stamped

DAYS = 5 * 365


def write_seasonal(path: Path) -> None:
    """Two variates whose next day goes with this one in winter and against it in summer."""
    rng = np.random.default_rng(3)
    pull = 0.9 * np.cos(2 * np.pi * np.arange(DAYS) / 365.2425)
    values = rng.normal(size=(DAYS, 2))
    for day in range(1, DAYS):
        values[day] = pull[day] * values[day - 1] + 0.3 * values[day]
    write_stamped(path, values + np.array([0, 5]), "D")


def write_hours(path: Path) -> None:
    """Two variates whose next hour goes with this one by day and against it by night, or always."""
    rng = np.random.default_rng(4)
    pull = 0.9 * np.stack([np.cos(2 * np.pi * np.arange(1500) / 24), np.ones(1500)], axis=1)
    values = rng.normal(size=(1500, 2))
    for hour in range(1, 1500):
        values[hour] = pull[hour] * values[hour - 1] + 0.3 * values[hour]
    write_stamped(path, values + np.array([0, 5]), "h")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("calendar")
    write_seasonal(folder / "days.csv")
    base = tiny_run(folder)
    data = replace(base.data, path=str(folder / "days.csv"), seq_len=16, pred_len=2)
    model = replace(base.model, prompt="none", anchor_calendar="year")
    train = replace(base.train, max_steps=2, learning_rate=1e-5)
    plain = replace(
        base, name="plain", data=data, model=replace(model, anchor="ridge"), train=train,
        gram=replace(base.gram, use_gram=False),
    )  # fmt: skip
    reading = with_memory_read(plain)
    write_hours(folder / "hours.csv")
    hours = replace(data, path=str(folder / "hours.csv"), pred_len=1)
    own, daily = {"anchor_weights": "individual", "anchor_calendar": "day"}, []
    for one in (plain, reading):
        of_day = replace(one.model, **own)  # type: ignore[arg-type]
        daily.append(replace(one, name=f"{one.name}_day", data=hours, model=of_day))
    train_runs([plain, reading, *daily])
    return {one.name: one.run_folder for one in (plain, reading, *daily)}


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("plain", "ridge + year"),
        ("reading", "ridge + retrieval + year"),
        ("plain_day", "individual ridge + day"),
        ("reading_day", "individual ridge + retrieval + day"),
    ],
)
def test_the_anchor_is_better_than_weights_that_last(runs: dict[str, Path], name: str, row: str):
    assert_anchor_gains(runs[name], row, 0.9)


@pytest.mark.ranks
@pytest.mark.parametrize("name", ["plain", "reading", "plain_day", "reading_day"])
def test_a_frame_is_forecast_as_its_window_is_scored(
    runs: dict[str, Path], name: str, tmp_path: Path
):
    run = load_run(runs[name])
    wanted_HN, names = forecast_of_last_window(run), ["v0", "v1"]
    frame = pd.read_csv(run.config.data.path or "", parse_dates=["date"])
    models = loaded_and_exported(runs[name], tmp_path / "model")
    calendar = run.config.model.anchor_calendar
    assert f"the series and the time of {calendar}" in (tmp_path / "model/README.md").read_text()
    steps, half = run.config.data.pred_len, {"year": 182 * 24, "day": 12}[calendar]
    for model in models:
        got = model.predict(frame.iloc[:-steps])[names].to_numpy()
        np.testing.assert_allclose(got, wanted_HN, rtol=1e-5, atol=1e-5)
        half_later = frame.assign(date=frame["date"] + pd.Timedelta(hours=half))
        other = model.predict(half_later.iloc[:-steps])[names].to_numpy()
        assert np.abs(other - got).max() > 0.05
        with pytest.raises(
            ValueError, match=r"calendar_phase is missing, and model\.anchor_calendar"
        ):
            model(torch.zeros(1, 16, 2))


@pytest.mark.parametrize("calendar", ["year", "day"])
def test_refuses_a_calendar_without_an_anchor(calendar: Calendar):
    said = rf"anchor=none, but model\.anchor_calendar={calendar}: .* --model\.anchor_calendar none"
    with pytest.raises(ValueError, match=said):
        ModelConfig(anchor="none", anchor_calendar=calendar)
