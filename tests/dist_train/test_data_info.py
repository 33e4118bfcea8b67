"""dist_train/data_info.py: what lies in a corpus, and what of it is damaged."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dist_train import data_info
from dist_train.cli import main
from dist_train.config import load_run_config
from dist_train.data.arrow_series import read_facts
from dist_train.data.config import DataConfig, SourceConfig
from dist_train.data.windows import load_forecast_data
from tests.helpers.corpora import build_one, write_long, write_wide


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Two sources; one of them has three series, of which one is too short for most runs."""
    write_wide(tmp_path / "wide.csv")
    write_long(tmp_path / "long.csv", {"x": 90, "y": 60, "z": 12})
    for name in ("wide", "long"):
        build_one(SourceConfig(path=str(tmp_path / f"{name}.csv")), tmp_path / "corpus" / name)
    return tmp_path / "corpus"


def told(
    capsys: pytest.CaptureFixture[str], *argv: object, code: int = 0
) -> tuple[list[str], dict[str, Any]]:
    assert main(["data", "info", *map(str, argv)]) == code
    lines = capsys.readouterr().out.strip().splitlines()
    return lines[:-1], json.loads(lines[-1])


def test_a_line_for_each_source(corpus: Path, capsys: pytest.CaptureFixture[str]):
    lines, found = told(capsys, corpus)
    assert lines[0].split() == [
        "source", "series", "rows", "frequency", "from", "to", "bytes", "checks",
    ]  # fmt: skip
    assert lines[1].split()[:4] == ["long", "3", "162", "D"]
    assert lines[2].split() == [
        "wide", "2", "160", "h", "2020-01-01", "00:00:00", "2020-01-04", "07:00:00", "4.1", "KiB",
        "ok",
    ]  # fmt: skip
    assert [one["source"] for one in found["sources"]] == ["long", "wide"]
    assert found["damaged"] == []
    _, alone = told(capsys, corpus / "wide", "--verify")
    (wide,) = alone["sources"]
    assert wide["verified"] is True
    assert wide["bytes"] == (corpus / "wide" / "series.arrow").stat().st_size


def test_windows_are_those_that_a_run_trains_on(
    tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
):
    config = tmp_path / "run.yaml"
    config.write_text("data: {seq_len: 16, pred_len: 4, train_stride: 3}")
    _, found = told(capsys, corpus, "--config", config)
    sources = [SourceConfig(path=str(corpus / name), too_short="skip") for name in ("long", "wide")]
    data = load_forecast_data(DataConfig(sources=sources, seq_len=16, pred_len=4, train_stride=3))
    assert [one["windows"] for one in found["sources"]] == [
        len(data.only(number).windows["train"]) for number in range(2)
    ]
    assert [one["too_short"] for one in found["sources"]] == [1, 0]


def test_damage_is_found_by_reading_every_byte(corpus: Path, capsys: pytest.CaptureFixture[str]):
    file = corpus / "long" / "series.arrow"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert told(capsys, corpus)[1]["damaged"] == []
    lines, found = told(capsys, corpus, "--verify", code=2)
    assert found["damaged"] == ["long"]
    assert lines[1].split() == ["long", "damaged"]
    assert lines[2].split()[-1] == "verified"
    assert "altered since it was written; copy the whole folder again" in lines[3]


def test_what_is_not_finished_is_told(corpus: Path, capsys: pytest.CaptureFixture[str]):
    (corpus / "wide" / "source.json").rename(corpus / "wide" / ".source.json.12")
    (corpus / "new").mkdir()
    (corpus / "new" / ".series.arrow.77").touch()
    (corpus / "other").mkdir()
    lines, found = told(capsys, corpus, code=2)
    assert found["damaged"] == ["new", "wide"]
    assert sum("source.json cannot be read (No such file" in line for line in lines) == 2


def test_a_folder_without_sources_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for folder in (tmp_path, tmp_path / "nowhere"):
        assert main(["data", "info", str(folder)]) == 2
        assert "holds no built source; make one with timellm data build" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("size", "shown"),
    [(12, "12 B"), (3 * 2**30, "3.0 GiB"), (5 * 2**50, "5120.0 TiB"), (4194, "4.1 KiB")],
)
def test_sizes_are_readable(corpus: Path, size: int, shown: str):
    line = data_info.told(replace(read_facts(corpus / "wide"), bytes=size))
    assert line == f"2 series, 160 rows, h, 2020-01-01 00:00:00 to 2020-01-04 07:00:00, {shown}"


def test_a_source_that_the_run_renames_is_found_by_its_folder(
    tmp_path: Path,
    corpus: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    config = tmp_path / "run.yaml"
    for long, wide in (("beta", "alpha"), ("wide", "long")):  # the second pair is exchanged
        config.write_text(
            f"data: {{seq_len: 16, pred_len: 4, sources: ["
            f"{{path: {corpus}/../corpus/long, name: {long}, too_short: skip, pred_len: 2}}, "
            f"{{path: {corpus / 'wide'}, name: {wide}}}]}}"
        )
        data = load_forecast_data(load_run_config(config).data)
        counts = data.windows["train"].count_by_series_range(data.first_series).tolist()
        monkeypatch.chdir(tmp_path)
        for folder in (corpus, "corpus"):
            _, found = told(capsys, folder, "--config", config)
            assert [one["windows"] for one in found["sources"]] == counts


def test_windows_of_a_source_that_the_run_names_are_of_its_horizon(
    tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
):
    config = tmp_path / "run.yaml"
    short = f"path: {corpus / 'long'}, too_short: skip, pred_len: 2"
    config.write_text(
        f"data: {{seq_len: 16, pred_len: 4, sources: [{{{short}}}, {{path: {corpus / 'wide'}}}]}}"
    )
    _, found = told(capsys, corpus, "--config", config)
    run = load_run_config(config)
    data = load_forecast_data(run.data)
    counts = data.windows["train"].count_by_series_range(data.first_series)
    assert [one["windows"] for one in found["sources"]] == counts.tolist()
