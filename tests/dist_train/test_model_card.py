"""dist_train/model_card.py: the card says what was measured, and only that."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from dist_train.conformal import Calibration
from dist_train.model_card import write_card


def content(**changes: Any) -> dict[str, Any]:
    score = {"mse": 0.123456, "mae": 0.25, "mase": 0.75}
    return {
        "backbone": {"name": "openai-community/gpt2", "licence": "MIT", "included": False,
                     "fingerprint": "f" * 64},
        "memory": None,
        "series": {
            "name": "vic_elec", "checksum": "c" * 64, "frequency": "30min",
            "description": "Demand of Victoria.",
            "series": [{"id": "vic_elec", "columns": ["Demand", "Temperature"]}],
        },
        "result": {
            "scores": {"Time-LLM": score, "ridge": {**score, "mse": 0.2}},
            "coverage_80": 81.25, "coverage_95": 95.5,
        },
        "config": {"name": "quick", "backbone": {"llm_layers": 2},
                   "data": {"path": None, "seq_len": 96, "pred_len": 24},
                   "model": {"anchor_calendar": "none"}},
        **changes,
    }  # fmt: skip


@pytest.fixture
def calibration() -> Calibration:
    import numpy as np

    bounds = np.zeros((2, 1, 3), dtype=np.float32)
    return Calibration(
        levels=(0.0, 95.0), lower=bounds, upper=bounds, floor=np.ones(2, dtype=np.float32),
        num_windows=40, facts={"method": "split conformal", "windows_forecast": 40},
    )  # fmt: skip


def card(path: Path, told: dict[str, Any], known: Calibration | None, changed: bool = False) -> str:
    write_card(path / "README.md", told, known, changed)
    return (path / "README.md").read_text()


def test_it_says_data_numbers_coverage_and_terms(tmp_path: Path, calibration: Calibration):
    text = card(tmp_path, content(), calibration)
    for part in (
        "| Time-LLM | 0.1235 | 0.2500 | 0.750 |", "| ridge | 0.2000 |",
        "81.25 % at level 80, 95.5 % at level 95", "40 validation windows; levels up to 95 %",
        "Licence: MIT", "tsibbledata", "`Demand`, `Temperature`", "Demand of Victoria.", "30min",
        "reads 96 steps and forecasts 24", "no memory", "fingerprint `ffffffffffff`",
    ):  # fmt: skip
        assert part in text, part


def test_it_says_what_the_forecast_knows_of_the_calendar(tmp_path: Path):
    told = content()
    assert "knows nothing but the series: no calendar, no events." in card(tmp_path, told, None)
    for known in ("year", "day"):
        told["config"]["model"]["anchor_calendar"] = known
        text = card(tmp_path, told, None)
        assert f"nothing but the series and the time of {known}: no holidays, no events." in text


def test_its_front_matter_is_yaml_that_the_hub_reads(tmp_path: Path, calibration: Calibration):
    front = yaml.safe_load(card(tmp_path, content(), calibration).split("---")[1])
    assert front["base_model"] == "openai-community/gpt2"
    assert front["license_name"] == "MIT"
    (result,) = front["model-index"][0]["results"]
    assert {"type": "mse", "value": 0.123456} in result["metrics"]


def test_what_was_not_measured_is_said(tmp_path: Path, calibration: Calibration):
    text = card(tmp_path, content(result={"scores": content()["result"]["scores"]}), calibration)
    assert "Coverage on the test split was not measured" in text
    assert "None: the model has no calibration" in card(tmp_path, content(), None)
    unfinished = card(tmp_path, content(result=None), None)
    assert "Nothing: the run did not finish." in unfinished
    assert "model-index" not in unfinished
    assert "trained on after" in card(tmp_path, content(result=None), None, changed=True)


def test_data_of_the_user_carry_no_terms_of_the_catalog(tmp_path: Path):
    told = content()
    told["config"]["data"]["path"] = "vic_elec.csv"
    assert "tsibbledata" not in card(tmp_path, told, None)


def test_who_gets_a_memory_gets_the_training_rows(tmp_path: Path):
    assert "who gets it can read them" in card(tmp_path, content(memory={"index": "flat"}), None)


def test_many_series_are_counted(tmp_path: Path):
    told = content()
    told["series"]["series"] = [{"id": f"s{n}", "columns": ["y"]} for n in range(40)]
    text = card(tmp_path, told, None)
    assert "40 series: `s0`, `s1`" in text
    assert "and 28 more" in text
    assert "df: unique_id, ds, y" in text


def test_no_folder_of_this_machine_is_named(tmp_path: Path):
    told = content()
    told["backbone"]["name"] = str(tmp_path / "secret" / "gpt2")
    text = card(tmp_path, told, None)
    assert "secret" not in text
    assert "`gpt2`" in text


def test_sources_that_are_forecast_for_fewer_steps_are_named(tmp_path: Path):
    told = content()
    told["config"]["data"]["sources"] = [
        {"path": None, "dataset": "ETTh1", "pred_len": None},
        {"path": "shops/*.csv", "pred_len": 7},
        {"path": "last.csv", "pred_len": 24},
    ]
    told["series"]["sources"] = [{"name": name} for name in ("ETTh1", "shops", "last")]
    assert "forecasts 24 (7 of shops)." in card(tmp_path, told, None)
