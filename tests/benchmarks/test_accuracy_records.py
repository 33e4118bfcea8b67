"""benchmarks/accuracy_records.py: rows are means over seeds, and no record is taken for another."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.accuracy_records import (
    RESULTS,
    Record,
    read_records,
    rows_of,
    to_markdown,
    write_record,
)
from dist_train.config import ConfigError

RECORD = Record(
    dataset="ETTh1", horizon=96, model="best", seed=1, mse=0.36, mae=0.39, ridge_mse=0.363,
    val_mse=0.67, num_windows=2785, seq_len=512, train_s=1.0, ranks=1, config="c", code="x",
    commit="abc", hardware="2 CPU cores", date="2026-11-28", command="a command",
)  # fmt: skip


def test_records_come_back_as_rows_with_mean_and_sample_deviation(tmp_path: Path):
    values = [0.36, 0.37, 0.395]
    for seed, mse in enumerate(values):
        write_record(replace(RECORD, seed=seed, mse=mse), tmp_path)
    ridge = replace(RECORD, model="ridge", seed=None, mse=0.363)
    write_record(ridge, tmp_path)
    best, row = rows_of(read_records(tmp_path))
    assert (best.model, best.seeds, best.deterministic) == ("best", [0, 1, 2], False)
    assert best.mse_mean == pytest.approx(np.mean(values))
    assert best.mse_std == pytest.approx(np.std(values, ddof=1))
    assert (row.seeds, row.deterministic, row.mse_std) == ([], True, None)


def test_the_markdown_has_the_average_over_horizons():
    rows = rows_of([replace(RECORD, horizon=h, mse=m) for h, m in ((96, 0.3), (192, 0.5))])
    lines = to_markdown(rows).splitlines()
    assert lines[2].startswith("| ETTh1 | 96 | best | 1 | 0.3000 | 0.3900 | 0.3630 | -0.0630 |")
    assert lines[-1] == (
        "| ETTh1 | average of 96/192 | best | | 0.4000 | 0.3900 | 0.3630 | +0.0370 |"
    )


def test_a_record_is_never_overwritten(tmp_path: Path):
    write_record(RECORD, tmp_path)
    with pytest.raises(ConfigError, match=r"ETTh1_96_best_seed1\.json: there is a record of this"):
        write_record(replace(RECORD, mse=0.1), tmp_path)
    assert read_records(tmp_path) == [RECORD]


def test_two_records_of_one_run_are_refused(tmp_path: Path):
    path = write_record(RECORD, tmp_path)
    path.with_name("copy.json").write_text(path.read_text())
    with pytest.raises(ConfigError, match="is of the same run as .*; move one of them away"):
        read_records(tmp_path)


def test_seeds_of_different_settings_are_no_row(tmp_path: Path):
    write_record(RECORD, tmp_path)
    write_record(replace(RECORD, seed=2, config="other"), tmp_path)
    with pytest.raises(ConfigError, match="seed2.json: has other settings than .*seed1.json"):
        read_records(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mse": "0.3"}, "mse is '0.3'"),
        ({"mse": float("nan")}, "mse is nan"),
        ({"seed": True}, "seed is True"),
        ({"extra": 1}, "extra is 1"),
        ({"mae": None}, "mae is None"),
    ],
)
def test_what_is_no_record_is_refused_by_its_name(
    tmp_path: Path, change: dict[str, object], message: str
):
    path = write_record(RECORD, tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ConfigError, match=f"seed1.json: is no record of a run .{message}"):
        read_records(tmp_path)


def test_a_folder_without_records_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="holds no record; make one with --dataset"):
        read_records(tmp_path)


def test_the_committed_records_can_be_read():
    if list(RESULTS.glob("*.json")):
        assert rows_of(read_records(RESULTS))
