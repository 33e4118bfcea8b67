"""A training over several sources: on any number of ranks, stopped anywhere, scored one by one."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from dist_train.config import RunConfig
from dist_train.data.windows import load_forecast_data
from dist_train.loading import load_run
from dist_train.metric_catalog import METRICS
from dist_train.scoring import Evaluation, evaluate_run
from model.pretrained import TimeLLM
from tests.helpers.interrupted import whole_and_stopped
from tests.helpers.runs import losses, numbers
from tests.helpers.sources import run_over_sources

pytestmark = pytest.mark.ranks

STEPS, CUT = 12, 7


def run_of(folder: Path, name: str) -> RunConfig:
    """Two epochs and a bit of four steps."""
    config = run_over_sources(folder, name)
    train = replace(
        config.train, batch_size=440, micro_batch_size=110, max_steps=STEPS, eval_every=6,
        learning_rate=1e-2,
    )  # fmt: skip
    return replace(config, train=train)


def result_of(config: RunConfig) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((config.run_folder / "result.json").read_text())
    return content


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunConfig]:
    """Whole on one rank, whole on two, and stopped on two and gone on with on one."""
    return whole_and_stopped(run_of, tmp_path_factory.mktemp("sources"), CUT)


@pytest.mark.parametrize("name", ["two", "stopped"])
def test_the_same_windows_come_on_any_number_of_ranks(runs: dict[str, RunConfig], name: str):
    one = losses(runs["one"].run_folder)
    assert len(one) == STEPS
    assert losses(runs[name].run_folder) == pytest.approx(one, abs=1e-5)
    assert result_of(runs[name])["test_mse"] == pytest.approx(
        result_of(runs["one"])["test_mse"], abs=1e-5
    )


def test_each_source_has_its_scores_beside_its_ridge(runs: dict[str, RunConfig]):
    result = result_of(runs["one"])
    assert list(result["sources"]) == ["hourly", "quarter", "daily"]
    assert all("ridge" in rows and "ridge of all" in rows for rows in result["sources"].values())
    mean = np.mean([rows["Time-LLM"]["mse"] for rows in result["sources"].values()])
    assert result["test_mse"] == pytest.approx(float(mean), abs=1e-6)
    data = load_forecast_data(runs["one"].data)
    for number, rows in enumerate(result["sources"].values()):
        assert rows["Time-LLM"]["num_windows"] == len(data.only(number).windows["test"])
    report = (runs["one"].run_folder / "report.md").read_text()
    assert "| MSE | hourly | quarter | daily | mean |" in report


def test_validation_of_each_source_is_logged(runs: dict[str, RunConfig]):
    lines = [line for line in numbers(runs["one"].run_folder) if "val/mse" in line]
    assert len(lines) == 3
    for line in lines:
        voices = [line[f"val/sources/{name}"] for name in ("hourly", "quarter")]
        assert line["val/mse"] == pytest.approx(sum(voices) / 2)
        assert "val/sources/daily" in line


def test_what_is_logged_is_listed(runs: dict[str, RunConfig]):
    names = {name for line in numbers(runs["one"].run_folder) for name in line} - {"step"}
    listed = {name for name in names if any(metric.names(name) for metric in METRICS)}
    assert listed == names
    for metric in METRICS:
        if metric.when == "several sources":
            assert any(metric.names(name) for name in names)


@pytest.mark.slow
def test_the_run_is_scored_again_from_its_folder(runs: dict[str, RunConfig]):
    found = evaluate_run(Evaluation(run=runs["one"].run_folder))
    assert found is not None
    reported = result_of(runs["one"])["sources"]
    for source, rows in found["sources"].items():
        for name in ("Time-LLM", "ridge", "ridge of all", "seasonal naive"):
            assert rows[name]["mse"] == pytest.approx(reported[source][name]["mse"], rel=1e-5)


def test_a_frame_of_one_source_is_forecast_as_its_test_windows_are(runs: dict[str, RunConfig]):
    folder = runs["one"].run_folder
    data, run = load_forecast_data(runs["one"].data), load_run(folder)
    number = data.channel_names.index("quarter/v1")
    series, scaler = data.series_set.series[number], data.scalers[number]
    frame = pd.DataFrame({"unique_id": series.id, "ds": series.dates, "y": series.values[:, 0]})
    model = TimeLLM.from_pretrained(folder)
    found = model.predict(frame.iloc[:-12], level=[])
    context = scaler.transform(series.values[-60:-12]).astype(np.float32)[None]
    output = run.output_with(run.batch_of(context, None, [1]), None)
    expected = scaler.inverse(output.forecast[0].numpy())[:, 0]
    np.testing.assert_allclose(found.iloc[:, -1].to_numpy(), expected, rtol=1e-5)
    assert found["ds"].tolist() == list(pd.DatetimeIndex(series.dates[-12:]))
