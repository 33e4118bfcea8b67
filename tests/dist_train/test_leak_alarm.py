"""dist_train/leak_alarm.py: it fires on a memory without exclusion, and not on drifting data."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from dist_train.data.collate import Collator
from dist_train.data.windows import ForecastData
from dist_train.leak_alarm import LeakError, check_for_leaks, message
from dist_train.retrieval import Retriever
from memory_index.config import BankConfig
from memory_index.exclusion import Exclusion
from model.config import GramConfig
from model.pattern_encoder import build_encoder
from tests.helpers.forecast_data import data_of_sources, long_data, source_of, wide_data
from tests.helpers.ranks import run_ranks

L, H = 24, 8
NOTHING = Exclusion(seq_len=0, pred_len=0, past_only=False)


def retriever_of(data: ForecastData, **options: object) -> Retriever:
    settings = {"retrieval_key": "anchored", "d_repr": 24, "temperature": 0.05} | options
    gram = GramConfig(use_gram=True, **settings)  # type: ignore[arg-type]
    retriever = Retriever(data, gram, BankConfig())
    torch.manual_seed(0)
    retriever.refresh(build_encoder(gram, L).state_dict())
    return retriever


def noise(rows: int = 600) -> np.ndarray:
    """White noise: a future can only be known by seeing it."""
    return np.random.default_rng(0).normal(size=(rows, 2))


def show_everything(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Retriever, "exclusion", lambda self, *, past_only: NOTHING)


def drifting() -> ForecastData:
    """A cycle throughout training, noise afterwards: nothing leaks, yet training looks better."""
    hours = np.arange(600)[:, None]
    values = np.sin(2 * np.pi * hours / 12 + np.arange(2)) + 0.01 * noise()
    values[420:] = noise()[420:]
    return wide_data(values, L, H)


def test_stops_a_run_whose_memory_shows_the_answer(monkeypatch: pytest.MonkeyPatch):
    retriever = retriever_of(wide_data(noise(), L, H))
    show_everything(monkeypatch)
    with pytest.raises(LeakError, match=r"^leak: .*\d+ retrieved entries overlap .*=warn"):
        check_for_leaks(retriever)


def test_warn_goes_on_and_counts_what_overlaps(monkeypatch: pytest.MonkeyPatch):
    retriever = retriever_of(wide_data(noise(), L, H), leak_alarm="warn", top_k=1)
    show_everything(monkeypatch)
    report = check_for_leaks(retriever)
    assert report.alarm
    assert report.train_ratio < 0.1
    assert report.overlaps == 256 * 2  # every row of the sample has found itself
    assert message(report).startswith("leak: ")


def test_an_overlap_in_another_series_at_the_same_hours_counts(monkeypatch: pytest.MonkeyPatch):
    values = noise(400)[:, 0]
    data = long_data([(0, values), (50, values[50:])], L, H)
    retriever = retriever_of(data, leak_alarm="warn", top_k=2)
    show_everything(monkeypatch)
    # Of 256 windows nearly each finds itself and its copy in the other series.
    assert check_for_leaks(retriever).overlaps > 400


def test_says_nothing_on_normal_data():
    hours = np.arange(600)[:, None]
    for values in (noise(), np.sin(2 * np.pi * hours / 24) + 0.3 * noise()):
        report = check_for_leaks(retriever_of(wide_data(values, L, H)))
        assert not report.alarm
        assert report.overlaps == 0
        assert message(report).startswith("retrieval alone has ")


def test_ratios_are_those_of_every_window_where_the_sample_holds_them_all():
    data = wide_data(noise(200), L, H)
    retriever = retriever_of(data)
    report = check_for_leaks(retriever)
    for split, ratio in (("train", report.train_ratio), ("val", report.val_ratio)):
        batch = Collator(data.windows[split], None)(list(range(len(data.windows[split]))))
        own = (retriever.forecast(batch, split) - batch.target).square().mean()
        naive = (batch.context[:, -1:] - batch.target).square().mean()
        assert ratio == pytest.approx(float(own / naive), rel=1e-5)


def test_only_warns_where_the_series_drift():
    report = check_for_leaks(retriever_of(drifting()))
    assert report.alarm
    assert report.overlaps == 0
    assert message(report).startswith("warning: ")
    assert "so the series drift" in message(report)


def check_on_ranks(rank: int, world_size: int, out: Path) -> None:
    normal = check_for_leaks(retriever_of(wide_data(noise(), L, H)))
    with pytest.MonkeyPatch.context() as patch:
        show_everything(patch)
        with pytest.raises(LeakError, match="leak: ") as raised:
            check_for_leaks(retriever_of(wide_data(noise(), L, H)))
    said = [message(normal), str(raised.value), str(normal.overlaps)]
    (out / f"{world_size}-{rank}").write_text("\n".join(said))


@pytest.mark.ranks
def test_every_rank_stops_and_says_the_same_as_one(tmp_path: Path):
    for world_size in (1, 2):
        run_ranks(check_on_ranks, world_size, tmp_path)
    one = (tmp_path / "1-0").read_text()
    assert (tmp_path / "2-0").read_text() == (tmp_path / "2-1").read_text() == one


def check_with_few_windows(rank: int, world_size: int, out: Path) -> None:
    data = wide_data(noise(80), L, H)
    assert len(data.windows["val"]) == 1  # the second rank has none of it
    report = check_for_leaks(retriever_of(data, retrieval_key="dual", d_repr=8))
    (out / f"{world_size}-{rank}").write_text(f"{report.train_ratio:.6f} {report.val_ratio:.6f}")


@pytest.mark.ranks
def test_a_rank_without_a_window_takes_part(tmp_path: Path):
    for world_size in (1, 2):
        run_ranks(check_with_few_windows, world_size, tmp_path)
    one = (tmp_path / "1-0").read_text()
    assert (tmp_path / "2-0").read_text() == (tmp_path / "2-1").read_text() == one


def test_a_shorter_horizon_is_compared_over_its_own_steps():
    rows, values = pd.date_range("2020", periods=200, freq="h").to_numpy(), noise(200)
    long = source_of("long", [(rows, values[:, 0])])
    short = source_of("short", [(rows, values[:, -1] + 1)], pred_len=2)
    data = data_of_sources([long, short], L, H)
    retriever = retriever_of(data)
    windows = data.windows["val"]
    batch = Collator(windows, None)(list(range(len(windows))))
    forecasts = (retriever.forecast(batch, "val"), batch.context[:, -1:])
    own, naive = (float((one - batch.target).square().nanmean()) for one in forecasts)
    assert batch.target.isnan().any()
    assert check_for_leaks(retriever).val_ratio == pytest.approx(own / naive, rel=1e-5)
