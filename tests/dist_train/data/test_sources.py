"""dist_train/data/sources.py: several sets of series, in memory and mapped, read alike."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dist_train.data.arrow_series import verify
from dist_train.data.config import DataConfig, DataError, SourceConfig
from dist_train.data.sources import load_sources, union
from dist_train.data.windows import ForecastData, load_forecast_data
from tests.helpers.corpora import build_one, mixed_sources, windows_of, write_wide


@pytest.fixture
def mixed(tmp_path: Path) -> list[SourceConfig]:
    return mixed_sources(tmp_path)


def built(sources: list[SourceConfig], folder: Path) -> list[SourceConfig]:
    """The same sources, built and named as ``timellm data build`` names them."""
    entries = []
    for source in sources:
        name = build_one(source, folder / str(len(entries))).name
        entries.append(
            SourceConfig(
                path=str(folder / str(len(entries))), name=name, weight=source.weight,
                percent=source.percent, memory_percent=source.memory_percent,
                too_short=source.too_short,
            )
        )  # fmt: skip
    return entries


def test_one_set_is_one_source(tmp_path: Path):
    path = write_wide(tmp_path / "own.csv")
    (only,) = load_sources(DataConfig(path=str(path), percent=40))
    assert (only.name, only.percent, only.memory_percent, only.weight) == ("own", 40, 40, 1.0)
    # As it always was: one series of several variates.
    assert only.series_set.series[0].columns == ("a", "b")


def test_each_source_brings_what_is_said_of_it(mixed: list[SourceConfig]):
    wide, shops, many, months = load_sources(windows_of(mixed))
    assert [one.name for one in (wide, shops, many, months)] == ["wide", "shops", "many", "deep"]
    frequencies = [one.series_set.frequency for one in (wide, shops, many, months)]
    assert frequencies == ["h", "D", "15min", "MS"]
    assert [len(one.series_set.series) for one in (wide, shops, many, months)] == [3, 3, 6, 4]
    assert (wide.weight, shops.percent, shops.memory_percent) == (2.0, 50, 50)
    assert many.series_set.borders == (0.6, 0.2, 0.2)
    assert (months.series_set.description, months.series_set.seasonal_period) == ("months", 12)


def test_the_memory_may_hold_more_than_the_training(mixed: list[SourceConfig]):
    mixed[0] = replace(mixed[0], percent=0, memory_percent=100)
    source = load_sources(windows_of(mixed))[0]
    assert (source.percent, source.memory_percent) == (0, 100)


def test_the_union_lays_sources_end_to_end(mixed: list[SourceConfig]):
    sources = load_sources(windows_of(mixed))
    whole = union(sources)
    assert [one.id for one in whole.series] == [
        one.id for source in sources for one in source.series_set.series
    ]
    assert whole.frequency is None
    assert whole.name == "wide, shops, many, deep"
    assert union(sources[:1]) is sources[0].series_set
    swapped = union((sources[1], sources[0], *sources[2:]))
    assert swapped.checksum != whole.checksum


def test_mapped_equals_in_memory_bit_for_bit(tmp_path: Path, mixed: list[SourceConfig]):
    first = tmp_path / "many" / "s1.csv"
    lines = first.read_text().splitlines()
    lines[9] = lines[9].partition(",")[0] + ",,1.5"
    first.write_text("\n".join(lines))
    mixed[2] = replace(mixed[2], missing="interpolate")
    mixed[3] = replace(mixed[3], percent=0, memory_percent=100)
    memory = load_forecast_data(windows_of(mixed), with_dates=True)
    mapped = load_forecast_data(windows_of(built(mixed, tmp_path / "built")), with_dates=True)
    assert memory.series_set.notes == mapped.series_set.notes != ()
    assert_equal(memory, mapped)


def assert_equal(memory: ForecastData, mapped: ForecastData) -> None:
    for one, other in zip(memory.sources, mapped.sources, strict=True):
        assert (one.name, one.weight, one.percent, one.memory_percent, one.too_short) == (
            other.name, other.weight, other.percent, other.memory_percent, other.too_short,
        )  # fmt: skip
    sets = [(one.series_set, other.series_set)
            for one, other in zip(memory.sources, mapped.sources, strict=True)]  # fmt: skip
    for a, b in [(memory.series_set, mapped.series_set), *sets]:
        for key in ("name", "frequency", "seasonal_period", "description", "borders", "checksum",
                    "notes"):  # fmt: skip
            assert getattr(a, key) == getattr(b, key), key
        for one, other in zip(a.series, b.series, strict=True):
            assert (one.id, one.columns) == (other.id, other.columns)
            assert one.values.tobytes() == other.values.tobytes()
            np.testing.assert_array_equal(one.dates, other.dates)
    for a, b in zip(memory.scalers, mapped.scalers, strict=True):
        assert a.mean.tobytes() == b.mean.tobytes()
        assert a.scale.tobytes() == b.scale.tobytes()
        assert a.constant == b.constant
    assert memory.split_rows == mapped.split_rows
    assert memory.memory_rows == mapped.memory_rows
    for split, windows in memory.windows.items():
        other = mapped.windows[split]
        assert len(windows) == len(other) > 0
        ids = np.arange(len(windows))
        for a, b in zip(windows.batch(ids), other.batch(ids), strict=True):
            assert a.tobytes() == b.tobytes()
        phases = windows.calendar_phase(ids), other.calendar_phase(ids)
        np.testing.assert_array_equal(*phases)


def test_a_built_source_may_be_called_otherwise(tmp_path: Path):
    path = write_wide(tmp_path / "own.csv")
    build_one(SourceConfig(path=str(path)), tmp_path / "built")
    config = windows_of([SourceConfig(path=str(tmp_path / "built"), name="new")])
    (source,) = load_sources(config)
    assert source.name == "new"
    assert [one.id for one in source.series_set.series] == ["new/a", "new/b"]


def test_a_source_that_fails_is_named_with_its_file(tmp_path: Path, mixed: list[SourceConfig]):
    file = tmp_path / "many" / "s2.csv"
    file.write_text(file.read_text().replace("date,a", "day,a"))
    message = (
        r"data.sources\[2\] \(.*many\): .*s2.csv: data.date_column=date: there is no such column"
    )
    with pytest.raises(DataError, match=message):
        load_sources(windows_of(mixed))
    sources = [SourceConfig(dataset="ETTh7"), SourceConfig()]
    with pytest.raises(DataError, match=r"data.sources\[0\] \(ETTh7\): data.dataset='ETTh7' is"):
        load_sources(windows_of(sources))


def test_names_are_compared_before_anything_is_read(tmp_path: Path):
    sources = [SourceConfig(path=str(tmp_path / folder / "x.csv")) for folder in ("a", "b")]
    with pytest.raises(DataError, match="names 'x' twice"):
        load_sources(windows_of(sources))


def test_the_folder_of_a_corpus_is_no_source(tmp_path: Path):
    build_one(SourceConfig(path=str(write_wide(tmp_path / "own.csv"))), tmp_path / "corpus" / "own")
    config = windows_of([SourceConfig(path=str(tmp_path / "corpus"))])
    with pytest.raises(DataError, match="holds built sources: .*--config .*corpus/sources.yaml"):
        load_sources(config)


def test_half_a_copy_is_refused(tmp_path: Path):
    folder = tmp_path / "built"
    build_one(SourceConfig(path=str(write_wide(tmp_path / "own.csv"))), folder)
    (folder / "source.json").unlink()
    with pytest.raises(DataError, match=r"data.sources\[0\] .*source.json cannot be read .*copy"):
        load_sources(windows_of([SourceConfig(path=str(folder))]))


def test_a_copy_on_the_node_is_read_until_the_source_is_built_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from dist_train import local_copy

    folder = tmp_path / "built"
    build_one(SourceConfig(path=str(write_wide(tmp_path / "own.csv"))), folder)
    monkeypatch.setenv(local_copy.VARIABLE, str(tmp_path / "node"))
    copy = local_copy.make(folder)
    assert copy != folder
    (folder / "series.arrow").unlink()
    (source,) = load_sources(windows_of([SourceConfig(path=str(folder))]))
    assert source.name == "built"
    (folder / "source.json").unlink()
    build_one(SourceConfig(path=str(write_wide(tmp_path / "own.csv", seed=1))), folder)
    (new,) = load_sources(windows_of([SourceConfig(path=str(folder))]))
    assert new.series_set.checksum == verify(folder).checksum != source.series_set.checksum
