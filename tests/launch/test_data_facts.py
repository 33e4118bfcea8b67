"""Sizes of the data: as the training counts them, as published, or as stated."""

import dataclasses
from pathlib import Path

import pytest

from dist_train.config import ConfigError, RunConfig
from dist_train.data.config import DataConfig, DataError
from dist_train.data.windows import load_forecast_data
from launch.data_facts import data_facts
from memory_index.bank import MemoryBank
from memory_index.config import BankConfig
from model.config import GramConfig
from tests.helpers.series import write_series


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    write_series(tmp_path / "series.csv")
    return RunConfig(data=DataConfig(path=str(tmp_path / "series.csv"), seq_len=48, pred_len=12))


@pytest.mark.parametrize("bank", [BankConfig(), BankConfig(bank_stride=5),
                                  BankConfig(max_memory_size=100)])  # fmt: skip
def test_entries_and_windows_are_those_of_a_training(config: RunConfig, bank: BankConfig):
    config = dataclasses.replace(config, bank=bank)
    train = load_forecast_data(config.data).windows["train"]
    real = MemoryBank(train.values, train.ranges, 48, 12, bank, None)
    facts = data_facts(config)
    assert facts.bank_entries == len(real)
    assert facts.train_windows == len(train)
    assert facts.num_variates == train.num_variates
    assert facts.source.startswith("read: ")


def test_stated_sizes_need_no_file():
    facts = data_facts(RunConfig(data=DataConfig(path="nowhere.csv")), variates=3, rows=10_000)
    assert (facts.num_variates, facts.train_windows) == (3, 7000 - 512 - 96 + 1)
    assert facts.bank_entries == 3 * facts.train_windows


def test_published_sizes_serve_where_the_file_is_not_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TIMELLM_OFFLINE", "1")
    monkeypatch.setenv("TIMELLM_CACHE", str(tmp_path))
    facts = data_facts(RunConfig(data=DataConfig(dataset="ETTh1", root=str(tmp_path))))
    # 12 months of 30 days, hourly: the published split.
    assert facts.train_windows == 8640 - 512 - 96 + 1
    assert facts.num_variates == 7
    assert "not read" in facts.source


def test_no_memory_has_no_entries(config: RunConfig):
    off = dataclasses.replace(config, gram=GramConfig(use_gram=False))
    assert data_facts(off).bank_entries == 0


def test_unknown_data_are_refused_with_a_way_out():
    with pytest.raises(DataError, match="Or state its size: --num_variates and --num_rows"):
        data_facts(RunConfig(data=DataConfig(path="nowhere.csv")))
    with pytest.raises(ConfigError, match="belong together"):
        data_facts(RunConfig(), variates=3)
    with pytest.raises(ConfigError, match="leaves no training window of 608 rows"):
        data_facts(RunConfig(), variates=3, rows=700)
