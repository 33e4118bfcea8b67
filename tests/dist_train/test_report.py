"""dist_train/report.py: what a reader is told is what was measured."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from dist_train import report
from dist_train.baselines import fit_ridge, ridge_forecast
from dist_train.build import build_forecaster
from dist_train.config import RunConfig
from dist_train.data.collate import Collator, WindowBatch
from dist_train.data.config import DataConfig
from dist_train.data.windows import ForecastData, load_forecast_data
from dist_train.metrics import Scores
from dist_train.plots import ForecastExample
from dist_train.retrieval import Retriever
from dist_train.retrieval_ridge import RetrievalVerdict
from model.backbone_files import locate_backbone
from tests.helpers.runs import tiny_run
from tests.helpers.series import write_series

CONFIG = DataConfig(path="unused", seq_len=48, pred_len=12)
RESULT = {
    "val_mse": 0.25, "best_step": 30, "steps": 70, "ridge_val_mse": 0.5, "train_s": 12.5,
    "ranks": 2, "windows_per_s": 321.5, "peak_rss_gib": 1.75,
}  # fmt: skip


def small_data(folder: Path, variates: int = 2, name: str = "wind") -> ForecastData:
    path = write_series(folder / f"{name}.csv", variates=variates)
    return load_forecast_data(DataConfig(path=str(path), seq_len=48, pred_len=12))


def scores(mse: float, channels: int = 2) -> Scores:
    return Scores(
        num_windows=109, mse=mse, mae=0.11, rmse_original=1234.5678, mae_original=2.25, mase=0.75,
        mse_per_channel=tuple(mse + number / 100 for number in range(channels)),
        mse_per_step=(mse,) * 12,
    )  # fmt: skip


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_table_has_a_row_for_each_forecaster_and_marks_the_best():
    lines = report.table({"Time-LLM": scores(0.3), "ridge": scores(0.2), "naive": scores(0.4)})
    header, rule, *rows = map(cells, lines.splitlines())
    assert header[:3] == ["model", "MSE", "MAE"]
    assert [len(row) for row in (rule, *rows)] == [len(header)] * 4
    assert rows[0] == ["Time-LLM", "0.3000", "0.1100", "1235", "2.25", "0.750"]
    assert [row[:2] for row in rows[1:]] == [["ridge", "**0.2000**"], ["naive", "0.4000"]]


def test_the_opening_says_what_is_trained_on_what(tmp_path: Path):
    config = RunConfig(name="mine", data=CONFIG)
    text = report.opening(config, small_data(tmp_path), 4, torch.bfloat16)
    assert "run mine: wind, 2 series of 600 steps, 48 -> 12 steps" in text
    assert "361 train, 49 validation, 109 test" in text
    assert "4 rank(s) on" in text
    assert "bf16, ZeRO-2, backbone smollm2-135m (12 layers)" in text
    assert "note:" not in text


def test_what_was_found_in_the_data_is_said_at_the_start_and_in_the_report(tmp_path: Path):
    path = write_series(tmp_path / "gaps.csv")
    frame = pd.read_csv(path)
    frame.loc[5:7, "v1"] = np.nan
    frame.to_csv(path, index=False)
    config = DataConfig(path=str(path), seq_len=48, pred_len=12, missing="interpolate")
    data = load_forecast_data(config)
    note = "3 missing values of column 'v1' interpolated"
    assert f"note: {note}" in report.opening(RunConfig(), data, 1, torch.float32)
    assert f"* {note}" in written(tmp_path, data, {"ridge": scores(0.1)})


def example(variates: int) -> ForecastExample:
    return ForecastExample(
        dates=np.datetime64("2020-01-01", "ns") + np.arange(60) * np.timedelta64(1, "h"),
        history=np.zeros((48, variates)),
        truth=None,
        forecasts={"ridge": np.zeros((12, variates))},
        columns=[str(number) for number in range(variates)],
    )


def written(folder: Path, data: ForecastData, rows: dict[str, Scores]) -> str:
    config = RunConfig(name="mine", data=CONFIG)
    report.write(folder, config, data, RESULT, rows, example(data.num_variates))
    return (folder / "report.md").read_text()


def test_the_report_lists_scores_training_variates_and_series(tmp_path: Path):
    data = small_data(tmp_path)
    rows = {"Time-LLM": scores(0.3), "ridge": scores(0.2)}
    text = written(tmp_path, data, rows)
    assert text.startswith("# mine\n")
    assert report.table(rows) in text
    flat = " ".join(text.split())
    assert "one of the 109 windows of the test split is scored once" in flat
    assert "Best validation MSE 0.2500 at step 30 of 70 (ridge 0.5000)" in flat
    assert "12.5 s on 2 rank(s), 321.5 windows/s, at most 1.75 GiB per rank" in flat
    assert "| v0 | 0.3000 | 0.2000 |" in text
    assert "| v1 | 0.3100 | 0.2100 |" in text
    assert f"Checksum {data.series_set.checksum}" in text
    assert (tmp_path / "forecast.png").read_bytes().startswith(b"\x89PNG")
    assert "](forecast.png)" in text


def test_many_variates_are_cut_and_the_rest_is_counted(tmp_path: Path):
    data = small_data(tmp_path, variates=40)
    text = written(tmp_path, data, {"ridge": scores(0.2, channels=40)})
    assert "| v31 | 0.5100 |" in text
    assert "| v32 |" not in text
    assert "and 8 more in result.json" in text


def test_the_example_is_the_middle_test_window_in_original_units(tmp_path: Path):
    data = small_data(tmp_path)
    ridge = fit_ridge(data)

    def zeros(batch: WindowBatch) -> Tensor:
        return torch.zeros_like(batch.target)

    shown = report.collect_example(zeros, ridge, data, None)
    windows, series, scaler = data.windows["test"], data.series_set.series[0], data.scalers[0]
    _, start = windows.locate(len(windows) // 2)
    np.testing.assert_array_equal(shown.dates, series.dates[start : start + 60])
    np.testing.assert_allclose(shown.history, series.values[start : start + 48], rtol=1e-5)
    assert shown.truth is not None
    np.testing.assert_allclose(shown.truth, series.values[start + 48 : start + 60], rtol=1e-5)
    assert shown.columns == ("v0", "v1")
    # A forecast of 0 on the standardised scale is the mean of the training rows.
    mean = np.broadcast_to(scaler.mean, (12, 2))
    np.testing.assert_allclose(shown.forecasts["Time-LLM"], mean, rtol=1e-6)
    batch = Collator(windows, None)([len(windows) // 2])
    expected = scaler.inverse(ridge_forecast(ridge)(batch)[0].double().numpy())
    np.testing.assert_allclose(shown.forecasts["ridge"], expected, rtol=1e-5)


def test_a_real_run_reports_what_its_result_holds(finished_run: Path):
    result = json.loads((finished_run / "result.json").read_text())
    text = (finished_run / "report.md").read_text()
    for name, row in result["scores"].items():
        (line,) = [one for one in text.splitlines() if cells(one)[0] == name]
        assert cells(line)[1].strip("*") == f"{row['mse']:.4f}"
    assert {"Time-LLM", "ridge", "DLinear", "seasonal naive", "repeat last"} <= set(
        result["scores"]
    )
    assert f"at step {result['best_step']} of {result['steps']}" in text


def test_parameters_memory_and_closed_forms_are_told_before_training(tmp_path: Path):
    config = tiny_run(tmp_path)
    model = build_forecaster(config, locate_backbone(config.backbone.name), torch.float32)
    trained = sum(one.numel() for one in model.parameters() if one.requires_grad)
    everything = sum(one.numel() for one in model.parameters())
    data = load_forecast_data(config.data)
    ridge, better = fit_ridge(data), replace(fit_ridge(data), validation_mse=0.03125)
    text = report.parameters(model, ridge, None, None)
    assert f"{trained:,} trained and {everything - trained:,} frozen parameters" in text
    assert f"mse {ridge.validation_mse:.4f} (lambda {ridge.lam:g}, norm {ridge.norm})" in text
    assert text.endswith("memory: off")

    sampled = Retriever(data, config.gram, replace(config.bank, num_samples=100))
    verdict = RetrievalVerdict(without=ridge, with_retrieval=better)
    text = report.parameters(model, ridge, verdict, sampled)
    assert f"{ridge.validation_mse:.4f} without and 0.0312 with retrieved futures" in text
    assert text.endswith(
        "memory: on, 100 entries of 722, even; flat, a copy on every rank: 100 entries are "
        "searched whole"
    )


@pytest.mark.parametrize("name", ["Time-LLM", "ridge"])
def test_a_tie_marks_both(name: str):
    lines = report.table({"Time-LLM": scores(0.2), "ridge": scores(0.2)}).splitlines()
    (line,) = [one for one in lines if cells(one)[0] == name]
    assert cells(line)[1] == "**0.2000**"
