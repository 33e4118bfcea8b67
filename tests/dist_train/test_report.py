"""dist_train/report.py: what a reader is told is what was measured."""

import json
from pathlib import Path

import numpy as np
from dist_train.plots import ForecastExample

from dist_train import report
from dist_train.config import RunConfig
from dist_train.data.config import DataConfig
from dist_train.data.windows import ForecastData, load_forecast_data
from dist_train.metrics import Scores
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
