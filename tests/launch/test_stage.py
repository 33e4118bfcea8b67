"""launch/stage.py: what a run reads is copied to the node, and the ranks read the copy."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from dist_train import local_copy
from dist_train.config import RunConfig, config_to_yaml
from dist_train.data.arrow_series import SERIES_FILE
from dist_train.data.config import SourceConfig
from dist_train.data.series import load_series
from dist_train.data.windows import load_forecast_data
from launch.stage import main, read_by
from memory_index.config import BankConfig
from model.config import GramConfig
from tests.helpers.corpora import build_one, mixed_sources, windows_of
from tests.helpers.runs import tiny_run


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    monkeypatch.setenv(local_copy.VARIABLE, str(tmp_path / "node"))
    (tmp_path / "banks/v1").mkdir(parents=True)
    (tmp_path / "banks/v1/manifest.json").write_text("{}")
    return tiny_run(tmp_path, bank=BankConfig(path=str(tmp_path / "banks")))


def test_data_and_bank_are_copied_and_read(
    tmp_path: Path, config: RunConfig, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "run.yaml").write_text(config_to_yaml(config))
    assert main(["--config", str(tmp_path / "run.yaml"), "--resume", "auto"]) == 0
    assert capsys.readouterr().out.count(" is at hand in ") == 2
    copies = {path.name for path in (tmp_path / "node").rglob("*") if path.is_file()}
    assert copies == {"series.csv", "manifest.json", ".lock"}
    assert config.data.path is not None
    copy = local_copy.find(Path(config.data.path))
    before = load_series(config.data)
    time_ns = copy.stat().st_mtime_ns
    text = copy.read_text()
    copy.write_text(text[:-3] + ("1" if text[-3] != "1" else "2") + text[-2:])
    os.utime(copy, ns=(time_ns, time_ns))
    assert load_series(config.data).checksum != before.checksum  # so it was the copy that was read


def test_a_run_without_memory_reads_no_bank(config: RunConfig):
    assert len(read_by(config)) == 2
    assert len(read_by(replace(config, gram=GramConfig(use_gram=False)))) == 1


def test_the_default_data_come_out_of_a_package(config: RunConfig):
    assert config.data.path is not None
    embedded = replace(config, data=replace(config.data, path=None, dataset="vic_elec"))
    assert [path.name for path in read_by(embedded)] == ["banks"]


def test_files_and_built_sources_of_a_corpus_are_copied_and_read(tmp_path: Path, config: RunConfig):
    (tmp_path / "raw").mkdir()
    first, second, third = mixed_sources(tmp_path / "raw")[:3]
    build_one(first, tmp_path / "built")
    sources = [SourceConfig(path=str(tmp_path / "built")), second, third, SourceConfig()]
    data = windows_of(sources)
    found = read_by(replace(config, data=data, gram=GramConfig(use_gram=False)))
    assert [path.name for path in found] == [
        "built", "long.parquet", "s0.csv", "s1.csv", "s2.csv",
    ]  # fmt: skip
    before = load_forecast_data(data).series_set.checksum
    for path in found:
        copy = local_copy.make(path)
        for file in [path] if path.is_file() else [path / SERIES_FILE]:
            stamp = file.stat()
            os.truncate(file, 0)
            os.truncate(file, stamp.st_size)
            os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
        assert local_copy.find(path) == copy
    assert load_forecast_data(data).series_set.checksum == before


def test_where_to_has_to_be_said(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.delenv(local_copy.VARIABLE)
    assert main([]) == 2
    assert "TIMELLM_LOCAL_COPY is not set" in capsys.readouterr().err
