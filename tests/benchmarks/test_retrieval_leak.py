"""benchmarks/retrieval_leak.py: the quick run, its numbers by name, and what it refuses."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from benchmarks.retrieval_leak import Row, alarm, exclusions, main, measure, summary, table
from benchmarks.ridge_head import HeadScore
from dist_train.data.config import DataConfig
from dist_train.data.windows import load_forecast_data
from memory_index.exclusion import visible
from tests.helpers.series import write_series

MASKS = ("masked", "query_only", "unmasked")
RETRIEVERS = ("", "own_top5_", "own_top20_")  # the first is the published protocol


@pytest.fixture(autouse=True)
def no_data_on_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.delenv("TIMELLM_DATA_ROOT", raising=False)
    monkeypatch.setenv("TIMELLM_CACHE", str(tmp_path))
    monkeypatch.setenv("TIMELLM_OFFLINE", "1")


def row(retriever: str, mask: str, train: float, val: float) -> Row:
    head = HeadScore(norm="last", lam=10.0, val_mse=0.5, test_mse=0.25)
    return Row(
        retriever=retriever, mask=mask, head=head, alone={"train": train, "val": val, "test": 1.0}
    )


@pytest.mark.slow
def test_the_quick_run_shows_the_leak(capsys: pytest.CaptureFixture[str]):
    assert main(["--quick"]) == 0

    printed = capsys.readouterr()
    assert "note: measuring vic_elec instead: data.dataset=ETTh1" in printed.err
    *lines, last = printed.out.strip().splitlines()
    assert len(lines) == 2 + 1 + 3 * len(MASKS)
    result = json.loads(last)
    assert result["dataset"] == "vic_elec"
    assert result["quick"] is True
    assert result["mse_masked"] < result["mse_none"] < result["mse_query_only"]
    assert result["mse_query_only"] < result["mse_unmasked"]
    for name in RETRIEVERS:
        masked, query_only, unmasked = (result[f"{name}mse_{mask}"] for mask in MASKS)
        assert masked < min(query_only, unmasked)
        train = [result[f"{name}train_retrieval_{mask}"] for mask in MASKS]
        assert train[0] > train[1] > train[2]
        # A leak is what makes training look far better than validation.
        assert train[0] > 0.5 * result[f"{name}val_retrieval"] > train[1]


def test_each_mask_hides_starts_closer_than_its_span():
    starts = torch.arange(100)
    query = torch.tensor([50])
    for (mask, exclusion), span in zip(exclusions(5, 3).items(), (8, 1, 0), strict=True):
        seen = visible(exclusion.hidden_range(query), starts)[0]
        assert seen.tolist() == [abs(start - 50) >= span for start in range(100)], mask


def test_the_alarm_compares_train_with_validation():
    without, leaking = row("none", "none", 2.0, 4.0), row("pearson", "unmasked", 0.1, 2.0)
    assert alarm(leaking, without) == pytest.approx(0.1)
    assert alarm(without, without) == 1.0


def test_the_table_and_the_summary_hold_every_row():
    rows = [row("none", "none", 2.0, 4.0), row("pearson", "masked", 1.0, 2.0),
            row("own_top5", "query_only", 0.2, 2.0)]  # fmt: skip
    assert table(rows).splitlines()[-1] == (
        "| own_top5 | query_only | 0.2500 | 0.5000 | 10 | last | 0.2000 | 2.0000 | 1.0000 | 0.200 |"
    )
    numbers = summary(rows)
    assert (numbers["mse_none"], numbers["val_mse_masked"]) == (0.25, 0.5)
    assert (numbers["train_repeat_last"], numbers["train_retrieval_masked"]) == (2.0, 1.0)
    assert numbers["own_top5_train_retrieval_query_only"] == 0.2


def test_a_stride_thins_the_queries_and_not_the_bank(tmp_path: Path):
    # A random walk repeats nothing, so only entries next to the query can tell its future: in a
    # bank thinned by more than L + H steps both masks would leave the same.
    walk = np.random.default_rng(0).normal(size=300).cumsum()
    dates = pd.date_range("2020-01-01", periods=300, freq="h")
    pd.DataFrame({"date": dates, "walk": walk}).to_csv(tmp_path / "walk.csv", index=False)
    data = load_forecast_data(DataConfig(path=str(tmp_path / "walk.csv"), seq_len=24, pred_len=8))
    for stride in (1, 40):
        rows = {(row.retriever, row.mask): row for row in measure(data, stride)}
        for retriever in ("pearson", "own_top5"):
            train = {mask: rows[retriever, mask].alone["train"] for mask in MASKS}
            assert train["query_only"] < 0.7 * train["masked"], (retriever, stride)


def test_refuses_a_series_too_short_for_the_mask(tmp_path: Path):
    path = write_series(tmp_path / "series.csv", rows=150)
    data = load_forecast_data(DataConfig(path=str(path), seq_len=24, pred_len=8))
    with pytest.raises(ValueError, match=r"74 windows of data.seq_len=24 .* the mask needs 83"):
        next(measure(data))


@pytest.mark.parametrize("quick", [[], ["--quick"]])
def test_a_folder_that_does_not_exist_is_refused(
    quick: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    missing = tmp_path / "nowhere"
    assert main(["--data.root", str(missing), *quick]) == 2
    assert f"data.root={missing} is not a folder" in capsys.readouterr().err


def test_only_the_quick_run_takes_another_data_set(capsys: pytest.CaptureFixture[str]):
    assert main([]) == 2
    assert "its file ETTh1.csv was not found" in capsys.readouterr().err


def test_an_unknown_option_is_refused(capsys: pytest.CaptureFixture[str]):
    assert main(["--quik"]) == 2
    assert "--quik" in capsys.readouterr().err
