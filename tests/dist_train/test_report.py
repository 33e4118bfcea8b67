"""dist_train/report.py: what a reader is told is what was measured."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import pyplot

from dist_train import report
from dist_train.baselines import repeat_last
from dist_train.calibration import calibrate
from dist_train.config import RunConfig
from dist_train.coverage import Coverage
from dist_train.data.config import DataConfig
from dist_train.data.windows import ForecastData, load_forecast_data
from dist_train.figures.forecast import ForecastExample
from dist_train.figures.samples import ForecastSample
from dist_train.metrics import Scores
from dist_train.report import RunReport
from dist_train.score_table import table
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


def written(folder: Path, data: ForecastData, rows: dict[str, Scores], **further: object) -> str:
    report.write(
        folder,
        RunReport(
            config=RunConfig(name="mine", data=CONFIG), data=data, result=RESULT, scores=rows,
            example=example(data.num_variates), **further,  # type: ignore[arg-type]
        ),
    )  # fmt: skip
    return (folder / "report.md").read_text()


def measured(channels: int) -> list[Coverage]:
    return [
        Coverage(
            level=level, covered=level - 1, width=0.5, interval_score=0.7,
            per_channel=tuple(level - number for number in range(channels)),
            per_step=(level,) * 12,
        )
        for level in (80.0, 95.0)
    ]  # fmt: skip


def test_the_report_lists_scores_training_variates_and_series(tmp_path: Path):
    data = small_data(tmp_path)
    rows = {"Time-LLM": scores(0.3), "ridge": scores(0.2)}
    text = written(tmp_path, data, rows)
    assert text.startswith("# mine\n")
    assert table(rows) in text
    flat = " ".join(text.split())
    assert "one of the 109 windows of the test split is scored once" in flat
    assert "Best validation MSE 0.2500 at step 30 of 70 (ridge 0.5000)" in flat
    assert "12.5 s on 2 rank(s), 321.5 windows/s, at most 1.75 GiB per rank" in flat
    assert "| v0 | 0.3000 | 0.2000 |" in text
    assert "| v1 | 0.3100 | 0.2100 |" in text
    assert f"Checksum {data.series_set.checksum}" in text
    assert (tmp_path / "forecast.png").read_bytes().startswith(b"\x89PNG")
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", text)
    assert pictures == [
        "forecast.png", "figures/losses.png", "figures/errors.png", "figures/cost.png",
    ]  # fmt: skip
    for picture in pictures:
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
    assert "## Intervals" not in text
    assert pyplot.get_fignums() == []


def test_intervals_are_told_beside_their_measured_coverage(tmp_path: Path):
    data = small_data(tmp_path)
    known = calibrate(repeat_last, data, batch_size=64)
    sample = ForecastSample(example=example(2), variate=1, neighbours=[])
    text = written(
        tmp_path, data, {"ridge": scores(0.2)}, samples=[sample], measured=measured(2),
        calibration=known,
    )  # fmt: skip
    flat = " ".join(text.split())
    assert "from 49 of the 49 windows of validation" in flat
    assert "| 80 % | 79.0 % | 79.0 % | 80.0 % | 0.5000 | 0.7000 |" in text
    assert "| v0 | 0.2000 | 80.0 % | 95.0 % |" in text
    assert "| v1 | 0.2100 | 79.0 % | 94.0 % |" in text
    for name in ("samples", "coverage"):
        assert f"](figures/{name}.png)" in text
        assert (tmp_path / f"figures/{name}.png").is_file()


def test_what_was_found_in_the_data_is_in_the_report(tmp_path: Path):
    path = write_series(tmp_path / "gaps.csv")
    frame = pd.read_csv(path)
    frame.loc[5:7, "v1"] = np.nan
    frame.to_csv(path, index=False)
    config = DataConfig(path=str(path), seq_len=48, pred_len=12, missing="interpolate")
    text = written(tmp_path, load_forecast_data(config), {"ridge": scores(0.1)})
    assert "* 3 missing values of column 'v1' interpolated" in text


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
    for level in (80, 95):
        (line,) = [one for one in text.splitlines() if one.startswith(f"| {level} % |")]
        assert cells(line)[1] == f"{result[f'coverage_{level}']:.1f} %"
    for picture in re.findall(r"\]\(([^)]+[.]png)\)", text):
        assert (finished_run / picture).is_file()
    assert {"coverage", "samples"} <= {one.stem for one in (finished_run / "figures").iterdir()}
    assert result["trained_parameters"] > 0
    assert result["seconds"]["evaluating"] > 0
