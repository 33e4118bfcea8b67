"""dist_train/opening.py: before it trains, a run says what, on what, and from where."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from dist_train import opening
from dist_train.baselines import fit_ridge
from dist_train.build import build_forecaster
from dist_train.closed_form import ClosedForm
from dist_train.config import RunConfig
from dist_train.data.config import DataConfig
from dist_train.data.windows import load_forecast_data
from dist_train.retrieval import Retriever
from dist_train.retrieval_ridge import RetrievalVerdict
from model.backbone_files import locate_backbone
from model.config import Extension, ModelConfig
from tests.helpers.runs import tiny_run
from tests.helpers.series import write_series
from tests.helpers.sources import tiny_corpus_run

CONFIG = DataConfig(path="unused", seq_len=48, pred_len=12)


def test_the_opening_says_what_is_trained_on_what(tmp_path: Path):
    path = write_series(tmp_path / "wind.csv")
    data = load_forecast_data(data_of(path))
    text = opening.opening(RunConfig(name="mine", data=CONFIG), data, 4, torch.bfloat16)
    assert "run mine: wind, 2 series of 600 steps, 48 -> 12 steps" in text
    assert "361 train, 49 validation, 109 test" in text
    assert "4 rank(s) on" in text
    assert "bf16, ZeRO-2, backbone smollm2-135m (12 layers)" in text
    assert "note:" not in text
    individual = RunConfig(data=CONFIG, model=ModelConfig(anchor_weights="individual"))
    assert "note:" not in opening.opening(individual, data, 4, torch.bfloat16)
    one = load_forecast_data(replace(data_of(path), columns=["v1"]))
    text = opening.opening(individual, one, 4, torch.bfloat16)
    assert "note: a window has one variate, so there are no individual weights" in text


def data_of(path: Path) -> DataConfig:
    return DataConfig(path=str(path), seq_len=48, pred_len=12)


def test_what_was_found_in_the_data_is_said(tmp_path: Path):
    path = write_series(tmp_path / "gaps.csv")
    frame = pd.read_csv(path)
    frame.loc[5:7, "v1"] = np.nan
    frame.to_csv(path, index=False)
    config = DataConfig(path=str(path), seq_len=48, pred_len=12, missing="interpolate")
    text = opening.opening(RunConfig(), load_forecast_data(config), 1, torch.float32)
    assert "note: 3 missing values of column 'v1' interpolated" in text


def test_parameters_memory_and_closed_forms_are_told_before_training(tmp_path: Path):
    config = tiny_run(tmp_path)
    model = build_forecaster(config, locate_backbone(config.backbone.name), torch.float32)
    trained = sum(one.numel() for one in model.parameters() if one.requires_grad)
    everything = sum(one.numel() for one in model.parameters())
    data = load_forecast_data(config.data)
    ridge, better = fit_ridge(data), replace(fit_ridge(data), validation_mse=0.03125)
    sizes = opening.sizes(model)
    assert (sizes.trained, sizes.frozen) == (trained, everything - trained)
    text = opening.parameters(sizes, ClosedForm(ridge=ridge, verdict=None), None)
    assert f"{trained:,} trained and {everything - trained:,} frozen parameters" in text
    assert f"mse {ridge.validation_mse:.4f} (lambda {ridge.lam:g}, norm {ridge.norm})" in text
    assert text.endswith("memory: off")

    sampled = Retriever(data, config.gram, replace(config.bank, num_samples=100))
    verdict = RetrievalVerdict(without=ridge, with_retrieval=better)
    closed = ClosedForm(ridge=ridge, verdict=verdict)
    text = opening.parameters(sizes, closed, sampled)
    assert f"{ridge.validation_mse:.4f} without and 0.0312 with retrieved futures" in text
    assert text.endswith(
        "memory: on, 100 entries of 722, even; flat, a copy on every rank: 100 entries are "
        "searched whole"
    )
    year = replace(better, extension=Extension(calendar="year"))
    closed = ClosedForm(ridge=ridge, verdict=None, extended=(year,))
    line = "anchor on validation: mse 0.0312, weights that follow the year"
    assert line in opening.parameters(sizes, closed, None).splitlines()
    extension = Extension(calendar="day", random_features=64)
    individual = replace(better, deviations=(None, 10.0, 1e4), extension=extension)
    closed = ClosedForm(ridge=ridge, verdict=None, extended=(individual,))
    line = (
        "anchor on validation: mse 0.0312, weights of their own for 2 of 3 variates, "
        "weights that follow the day, 64 random features"
    )
    assert line in opening.parameters(sizes, closed, None).splitlines()


def test_the_memory_of_each_source_is_told(tmp_path: Path):
    config = tiny_corpus_run(tmp_path)
    model = build_forecaster(config, locate_backbone(config.backbone.name), torch.float32)
    data = load_forecast_data(config.data)
    ridge = fit_ridge(data)
    by_source = {"hours": (0.5, 0.25), "quarters": (0.125, 0.75)}
    verdict = RetrievalVerdict(without=ridge, with_retrieval=ridge, by_source=by_source)
    closed = ClosedForm(ridge=ridge, verdict=verdict, off=("quarters",))
    retriever = Retriever(data, config.gram, config.bank, off=closed.off)
    lines = opening.parameters(opening.sizes(model), closed, retriever).splitlines()
    assert "the same by source: hours 0.5000 and 0.2500, quarters 0.1250 and 0.7500" in lines
    assert lines[-1] == (
        "memory: off for windows of quarters, where retrieval does not help on validation"
    )
    assert "hours: flat, a copy on every rank: " in lines[-2]
    assert "; quarters: flat, a copy on every rank: " in lines[-2]


def test_the_anchor_of_each_source_is_told(tmp_path: Path):
    config = tiny_corpus_run(tmp_path)
    model = build_forecaster(config, locate_backbone(config.backbone.name), torch.float32)
    ridge = fit_ridge(load_forecast_data(config.data))
    more = replace(ridge, validation_mse=0.03, extension=Extension(calendar="day"))
    closed = ClosedForm(ridge=ridge, verdict=None, extended=(more, ridge))
    text = opening.parameters(opening.sizes(model), closed, None, ["hours", "quarters"])
    assert "anchor of hours on validation: mse 0.0300, weights that follow the day\n" in text
    assert f"anchor of quarters on validation: mse {ridge.validation_mse:.4f}\n" in text
