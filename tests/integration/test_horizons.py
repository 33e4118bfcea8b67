"""Training over sources of which one is forecast for fewer steps: every number is of its own."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from dist_train.baselines import fit_ridge, ridge_forecast
from dist_train.config import RunConfig
from dist_train.data.collate import Collator
from dist_train.data.config import DataError
from dist_train.data.windows import load_forecast_data
from dist_train.evaluation import score_split
from dist_train.explanation import analogues
from dist_train.forecast_files import example_of
from dist_train.forecast_panel import collect
from dist_train.loading import load_run
from dist_train.prediction import predict
from dist_train.scoring import Evaluation, evaluate_run
from model.batch import RetrievedWindows
from model.config import GramConfig
from tests.helpers.interrupted import whole_and_stopped
from tests.helpers.runs import loaded_and_exported, losses
from tests.helpers.sources import tiny_corpus_run

pytestmark = pytest.mark.ranks

LONG, SHORT, STEPS, CUT = 8, 3, 12, 7


def run_of(folder: Path, name: str) -> RunConfig:
    """Hours are forecast for 8 steps, quarters of hours for 3; all modules are on."""
    gram = GramConfig(
        use_gram=True, retrieval_key="anchored", d_repr=24, temperature=0.05, retrieval_scope="both"
    )
    base = tiny_corpus_run(folder, name=name, gram=gram)
    assert base.data.sources is not None
    hours, quarters = base.data.sources
    data = replace(base.data, sources=[hours, replace(quarters, pred_len=SHORT)])
    model = replace(
        base.model, prompt="full", anchor="ridge_retrieval", anchor_calendar="day",
        anchor_random_features=16,
    )  # fmt: skip
    train = replace(base.train, batch_size=90, max_steps=STEPS, eval_every=6, learning_rate=1e-2)
    return replace(base, data=data, model=model, train=train)


def strict(text: str) -> Any:
    """Read JSON that has no NaN in it."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunConfig]:
    """Whole on one rank and on two, and stopped on two and gone on with on one."""
    return whole_and_stopped(run_of, tmp_path_factory.mktemp("horizons"), CUT)


@pytest.mark.parametrize("name", ["two", "stopped"])
def test_any_number_of_ranks_trains_and_scores_alike(runs: dict[str, RunConfig], name: str):
    one = losses(runs["one"].run_folder)
    assert len(one) == STEPS
    assert np.isfinite(one).all()
    assert losses(runs[name].run_folder) == pytest.approx(one, abs=1e-4)
    results = [strict((runs[run].run_folder / "result.json").read_text()) for run in ("one", name)]
    for source in ("hours", "quarters"):
        scores = [result["sources"][source]["Time-LLM"]["mse"] for result in results]
        assert scores[0] == pytest.approx(scores[1], rel=1e-3)


def test_a_source_is_scored_over_its_own_steps(runs: dict[str, RunConfig]):
    config = runs["one"]
    rows = strict((config.run_folder / "result.json").read_text())["sources"]
    data, run = load_forecast_data(config.data, with_dates=True), load_run(config.run_folder)
    windows = data.windows["test"]
    for number, (name, steps) in enumerate({"hours": LONG, "quarters": SHORT}.items()):
        ids = np.arange(len(windows))[windows.ids_of(data.series_of_sources[number])]
        assert rows[name]["Time-LLM"]["num_windows"] == len(ids)
        assert len(rows[name]["Time-LLM"]["mse_per_step"]) == steps
        batch = Collator(windows, run.prompt_builder)(ids.tolist())
        forecast = run.forecast(batch, "test")
        errors = (forecast - batch.target)[:, :steps].double().square()
        assert not errors.isnan().any()
        assert rows[name]["Time-LLM"]["mse"] == pytest.approx(float(errors.mean()), rel=1e-4)
        assert batch.target[:, steps:].isnan().all()


def test_its_ridge_is_that_of_the_source_alone(runs: dict[str, RunConfig]):
    config = runs["one"]
    assert config.data.sources is not None
    rows = strict((config.run_folder / "result.json").read_text())["sources"]
    for source in config.data.sources:
        alone = load_forecast_data(config.data.of_source(source))
        name = Path(str(source.path)).stem
        assert alone.windows["test"].pred_len == (LONG if name == "hours" else SHORT)
        forecasts = {"ridge": ridge_forecast(fit_ridge(alone))}
        sums = score_split(forecasts, alone, "test", batch_size=64)
        assert rows[name]["ridge"]["mse"] == pytest.approx(sums["ridge"].mse(), rel=1e-5)


def test_a_frame_gets_what_its_source_was_trained_for(runs: dict[str, RunConfig], tmp_path: Path):
    data, run = (
        load_forecast_data(runs["one"].data, with_dates=True),
        load_run(runs["one"].run_folder),
    )
    series, windows = data.series_set.series, data.windows["test"]
    scalers = {one.id: scaler for one, scaler in zip(series, data.scalers, strict=True)}
    parts = [windows.ids_of(slice(number, number + 1)) for number in range(len(series))]
    newest = {one.id: part.stop - 1 for one, part in zip(series, parts, strict=True)}
    model, exported = loaded_and_exported(runs["one"].run_folder, tmp_path / "export")
    for one, steps in ((series[0], LONG), (series[-1], SHORT)):
        frame = pd.DataFrame({"unique_id": one.id, "ds": one.dates, "y": one.values[:, 0]})
        found = model.predict(frame, level=[80])
        assert len(found) == steps
        assert np.isfinite(found.select_dtypes("number").to_numpy()).all()
        pd.testing.assert_frame_equal(exported.predict(frame, level=[80]), found)
        whole = model.predict(frame.iloc[:-steps], level=[])["TimeLLM"]
        batch = Collator(windows, run.prompt_builder)([newest[one.id]])
        wanted = run.forecast(batch, "test")[0, :steps].double().numpy()
        np.testing.assert_allclose(whole, scalers[one.id].inverse(wanted)[:, 0], rtol=1e-4)
        assert len(model.predict(frame, 2, level=[])) == 2
        checked = model.cross_validation(frame, n_windows=2, step_size=4, level=[])
        assert len(checked) == 2 * steps
        assert checked["ds"].max() == pd.Timestamp(one.dates[-1])
    with pytest.raises(DataError, match=rf"horizon=5: series '{one.id}' .*pred_len is 3"):
        model.predict(frame, 5)
    with pytest.raises(DataError, match="horizon=9: the model was trained for 8 steps"):
        model.predict(frame, 9)


def test_saved_forecasts_end_where_the_horizon_of_their_source_does(
    runs: dict[str, RunConfig], tmp_path: Path
):
    path = tmp_path / "forecasts.parquet"
    found = evaluate_run(Evaluation(run=runs["one"].run_folder, save_forecasts=path))
    assert found is not None
    table = pd.read_parquet(path)
    assert np.isfinite(table.select_dtypes("number").to_numpy()).all()
    of_hours = table["unique_id"].astype(str).str.startswith("hours")
    assert table[of_hours]["step"].max() == LONG
    short = table[~of_hours]
    assert short["step"].max() == SHORT
    assert len(short) == SHORT * found["sources"]["quarters"]["Time-LLM"]["num_windows"]
    inside = short["y"].between(short["lo-80"], short["hi-80"]).mean()
    assert 0.5 < inside < 0.98


def test_pictures_end_where_the_horizon_does(runs: dict[str, RunConfig]):
    config = runs["one"]
    data, run = load_forecast_data(config.data, with_dates=True), load_run(config.run_folder)

    def forecast(batch) -> tuple[torch.Tensor, RetrievedWindows | None]:  # type: ignore[no-untyped-def]
        assert run.retriever is not None
        retrieved = run.retriever.retrieve(batch, "val_selection")
        return run.output_with(batch, retrieved).forecast, retrieved

    drawn = collect(
        forecast, data, run.prompt_builder, count=9, batch_size=4, anchored=True,
        calibration=run.calibration,
    )  # fmt: skip
    seq_len = config.data.seq_len
    lengths = {len(one.dates) - seq_len for one in drawn}
    assert lengths == {LONG, SHORT}
    for one in drawn:
        steps = len(one.dates) - seq_len
        assert one.interval is not None
        assert one.neighbours is not None
        parts = [one.truth, one.forecast, *one.interval, *one.neighbours]
        assert all(len(part) == steps and np.isfinite(part).all() for part in parts)
    newest = predict(run, data.series_set, levels=[80], with_evidence=True)[-1]
    assert len(newest.values) == SHORT
    example = example_of(run, newest)
    assert example.analogues is not None
    assert example.analogues.shape[1] == SHORT
    assert analogues(run, newest).shape[2] == LONG
