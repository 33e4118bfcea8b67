"""dist_train/data/source_files.py: which files a source has, and what becomes of them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dist_train.data import source_files
from dist_train.data.config import DataConfig, DataError, SourceConfig
from dist_train.data.source_files import (
    Joint,
    checksum_of_source,
    files_of,
    name_of,
    names_of,
    parts_of,
)
from tests.helpers.corpora import mixed_sources, windows_of, write_long, write_wide


def parts(source: SourceConfig) -> list[source_files.SeriesSet]:
    return list(parts_of(DataConfig(), source))


def ids(source: SourceConfig) -> list[str]:
    return [series.id for part in parts(source) for series in part.series]


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("a/b/sales.csv", "sales"),
        ("a/b/sales.parquet", "sales"),
        ("a/b.c", "b.c"),
        ("a/b/", "b"),
        ("a/many/*.parquet", "many"),
        ("a/many/*/x?.parquet", "many"),
        ("a/../b", "b"),
        ("/", "source"),
    ],
)
def test_a_source_is_called_as_its_file_or_folder(path: str, name: str):
    assert name_of(SourceConfig(path=path)) == name
    assert name_of(SourceConfig(path=path, name="mine")) == "mine"


def test_dots_name_the_folder_that_they_mean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "here" / "below").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here" / "below")
    assert name_of(SourceConfig(path=".")) == "below"
    assert name_of(SourceConfig(path="..")) == "here"
    assert name_of(SourceConfig(path="*.csv")) == "below"


def test_a_data_set_keeps_its_name():
    assert name_of(SourceConfig(dataset="ETTh1")) == "ETTh1"


def test_two_sources_of_one_name_are_refused():
    sources = [SourceConfig(path="a/x.csv"), SourceConfig(path="b/x.csv")]
    with pytest.raises(DataError, match="names 'x' twice: give one of them another name"):
        names_of(sources)
    assert names_of([sources[0], replace(sources[1], name="y")]) == ["x", "y"]


def test_files_come_in_the_order_of_their_names(tmp_path: Path):
    for name in ("b.csv", "a.parquet", "c.PQ", "notes.txt", ".hidden.csv"):
        (tmp_path / name).touch()
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "d.csv").touch()
    found = files_of(SourceConfig(path=str(tmp_path)))
    assert [file.name for file in found] == ["a.parquet", "b.csv", "c.PQ"]
    found = files_of(SourceConfig(path=str(tmp_path / "**" / "*.csv")))
    assert "d.csv" in [file.name for file in found]


def test_a_file_whose_name_looks_like_a_pattern_is_a_file(tmp_path: Path):
    write_wide(tmp_path / "a[1].csv")
    assert files_of(SourceConfig(path=str(tmp_path / "a[1].csv"))) == [tmp_path / "a[1].csv"]
    assert ids(SourceConfig(path=str(tmp_path / "a[1].csv"))) == ["a[1]/a", "a[1]/b"]


def test_a_pattern_leaves_hidden_names_out_unless_it_says_the_dot(tmp_path: Path):
    for name in ("north.csv", "._north.csv", ".cache/a.csv", "deep/b.csv", "deep/.c.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    def names(pattern: str) -> list[str]:
        found = files_of(SourceConfig(path=f"{tmp_path}/{pattern}"))
        return [file.relative_to(tmp_path).as_posix() for file in found]

    assert names("*.csv") == ["north.csv"]
    assert names("**/*.csv") == ["deep/b.csv", "north.csv"]
    assert names("*/*.csv") == ["deep/b.csv"]
    assert names(".*.csv") == ["._north.csv"]
    assert names(".cache/*.csv") == [".cache/a.csv"]
    assert names("d*/../n*.csv") == ["deep/../north.csv"]
    with pytest.raises(DataError, match="matches no file"):
        names("_*.csv")


def test_a_pattern_begins_in_the_deepest_folder_that_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = tmp_path / "run [2024]"
    (folder / "x").mkdir(parents=True)
    for name in ("a.csv", "x/b.csv"):
        write_wide(folder / name)
    assert files_of(SourceConfig(path=str(folder / "*.csv"))) == [folder / "a.csv"]
    assert files_of(SourceConfig(path=str(folder / "[x]" / "*.csv"))) == [folder / "x" / "b.csv"]
    assert ids(SourceConfig(path=str(folder / "*.csv"))) == ["run [2024]/a", "run [2024]/b"]
    monkeypatch.chdir(tmp_path)
    assert files_of(SourceConfig(path="run [2024]/*.csv")) == [Path("run [2024]/a.csv")]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere.csv", "does not exist: check the path"),
        ("empty", "holds no CSV or Parquet file: name a folder of such files"),
        ("*.parquet", "matches no file: check the pattern"),
    ],
)
def test_no_file_is_refused(tmp_path: Path, path: str, message: str):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=f"{path.replace('*', '.')}.* {message}"):
        files_of(SourceConfig(path=str(tmp_path / path)))


def test_every_variate_is_a_series_whose_id_tells_where_it_is_from(tmp_path: Path):
    wide, long, folder, pattern = mixed_sources(tmp_path)
    assert ids(wide) == ["wide/a", "wide/b", "wide/c"]
    assert ids(long) == ["shops/w w", "shops/x", "shops/y/z"]
    assert ids(folder) == ["many/s0", "many/s1/a", "many/s1/b", *(f"many/s2/{v}" for v in "abc")]
    # Both are called part.parquet.
    assert ids(pattern) == [
        "deep/one/part.parquet/a", "deep/one/part.parquet/b",
        "deep/two/part.parquet/a", "deep/two/part.parquet/b",
    ]  # fmt: skip


def test_values_and_dates_are_those_of_the_file(tmp_path: Path):
    wide = mixed_sources(tmp_path)[0]
    table = pd.read_csv(tmp_path / "wide.csv")
    (part,) = parts(wide)
    for series, column in zip(part.series, "abc", strict=True):
        np.testing.assert_array_equal(series.values[:, 0], table[column].to_numpy())
        np.testing.assert_array_equal(series.dates, table["date"].to_numpy("datetime64[ns]"))
        assert series.columns == ("y",)


def test_ids_are_unique_where_file_names_are_not(tmp_path: Path):
    write_wide(tmp_path / "x.csv", seed=1)
    write_wide(tmp_path / "x.parquet", seed=2)
    found = ids(SourceConfig(path=str(tmp_path), name="s"))
    assert found == ["s/x.csv/a", "s/x.csv/b", "s/x.parquet/a", "s/x.parquet/b"]


def test_only_one_file_is_held_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for n in range(4):
        write_wide(tmp_path / f"s{n}.csv", seed=n)
    read: list[str] = []
    load = source_files.load_series

    def loading(config: DataConfig) -> source_files.SeriesSet:
        read.append(Path(str(config.path)).name)
        return load(config)

    monkeypatch.setattr(source_files, "load_series", loading)
    generator = parts_of(DataConfig(), SourceConfig(path=str(tmp_path)))
    for n in range(4):
        next(generator)
        assert len(read) == n + 1


def test_the_checksum_is_known_without_reading_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    sources = [*mixed_sources(tmp_path), SourceConfig(dataset="vic_elec")]
    config = windows_of(sources)
    for source in sources:
        joint = Joint()
        for part in parts_of(config, source):
            joint.add(part)
        if source.path is not None:
            monkeypatch.setattr(source_files, "load_series", None)
        assert checksum_of_source(config, source) == joint.of(()).checksum
        monkeypatch.undo()


def test_the_checksum_tells_bytes_names_and_number_of_files(tmp_path: Path):
    for n in range(2):
        write_wide(tmp_path / f"s{n}.csv", seed=n)
    source = SourceConfig(path=str(tmp_path))

    def checksum() -> str:
        return checksum_of_source(DataConfig(), source)

    seen = [checksum()]
    write_wide(tmp_path / "s1.csv", seed=7)
    seen.append(checksum())
    (tmp_path / "s1.csv").rename(tmp_path / "s2.csv")
    seen.append(checksum())
    write_wide(tmp_path / "s3.csv")
    seen.append(checksum())
    (tmp_path / "s2.csv").unlink()
    (tmp_path / "s3.csv").unlink()
    seen.append(checksum())
    assert len(set(seen)) == len(seen)


def test_what_is_wrong_is_said_with_its_file(tmp_path: Path):
    for n in range(3):
        write_wide(tmp_path / f"s{n}.csv", seed=n)
    text = (tmp_path / "s1.csv").read_text().splitlines()
    text[5] = text[5].rpartition(",")[0] + ",n.a."
    (tmp_path / "s1.csv").write_text("\n".join(text))
    with pytest.raises(DataError, match="s1.csv: column 'b' has 'n.a.' at row 5, which is not a"):
        parts(SourceConfig(path=str(tmp_path)))
    (tmp_path / "s1.csv").write_bytes(b"")
    with pytest.raises(DataError, match="s1.csv is empty"):
        parts(SourceConfig(path=str(tmp_path)))


def test_files_of_two_frequencies_are_no_source(tmp_path: Path):
    write_wide(tmp_path / "a.csv", freq="h")
    write_wide(tmp_path / "b.csv", freq="D")
    source = SourceConfig(path=str(tmp_path))
    with pytest.raises(DataError, match="b.csv: its frequency is D, that of a.csv is h: make them"):
        parts(source)
    joint = Joint()
    for part in parts(replace(source, dates="as_is")):
        joint.add(part)
    assert joint.of(()).frequency is None


def test_a_few_rows_follow_the_frequency_of_the_first_file(tmp_path: Path):
    write_wide(tmp_path / "a.csv", freq="h")
    write_wide(tmp_path / "b.csv", rows=2, freq="h")
    write_long(tmp_path / "c.csv", {"x": 40, "y": 2}, freq="h")
    assert {part.frequency for part in parts(SourceConfig(path=str(tmp_path)))} == {"h"}
    write_wide(tmp_path / "d.csv", rows=2, freq="D")
    with pytest.raises(DataError, match="d.csv: its frequency is None"):
        parts(SourceConfig(path=str(tmp_path)))


ORDERS = pytest.mark.parametrize("names", [("a", "b"), ("b", "a")], ids=["before", "after"])


@ORDERS
@pytest.mark.parametrize(
    ("begin", "rows", "freq", "season"),
    [("2020-01-06", 2, "h", 24), ("2020-01-06", 5, "B", 5), ("2020-01-06", 5, "D", 7),
     ("2020-04-01", 3, "MS", 12), ("2020-04-01", 3, "BMS", 12)],
)  # fmt: skip
def test_a_file_too_short_to_tell_a_frequency_has_that_of_another(
    tmp_path: Path, names: tuple[str, str], begin: str, rows: int, freq: str, season: int
):
    """From Monday to Friday are business days, and any."""
    for name, count in zip(names, (rows, 60), strict=True):
        dates = pd.date_range(begin, periods=count, freq=freq)
        table = pd.DataFrame({"date": dates, "a": np.arange(count) * 1.0})
        table.to_csv(tmp_path / f"{name}.csv", index=False)
    found = parts(SourceConfig(path=str(tmp_path)))
    assert [(part.frequency, part.seasonal_period) for part in found] == [(freq, season)] * 2
    joint = Joint()
    for part in found:
        joint.add(part)
    assert (joint.of(()).frequency, joint.of(()).seasonal_period) == (freq, season)


@ORDERS
@pytest.mark.parametrize(("rows", "freq"), [(2, "D"), (5, "B"), (60, "B")])
def test_a_file_of_another_frequency_is_refused_whatever_the_order(
    tmp_path: Path, names: tuple[str, str], rows: int, freq: str
):
    own, other = names
    for name, count, step in ((own, rows, freq), (other, 60, "h")):
        write_wide(tmp_path / f"{name}.csv", rows=count, freq=step)
    with pytest.raises(DataError, match=r"[ab].csv: its frequency is \w+, that of [ab].csv is \w+"):
        parts(SourceConfig(path=str(tmp_path)))


@ORDERS
def test_business_days_beside_days_are_refused_whatever_the_order(
    tmp_path: Path, names: tuple[str, str]
):
    for name, freq in zip(names, "BD", strict=True):
        write_wide(tmp_path / f"{name}.csv", rows=60, freq=freq)
    with pytest.raises(DataError, match="b.csv: its frequency is [BD], that of a.csv is [BD]"):
        parts(SourceConfig(path=str(tmp_path)))


def test_files_that_all_are_too_short_keep_what_they_have(tmp_path: Path):
    for name in "ab":
        write_wide(tmp_path / f"{name}.csv", rows=2)
    assert [part.frequency for part in parts(SourceConfig(path=str(tmp_path)))] == [None, None]
    write_wide(tmp_path / "c.csv", rows=3, freq="D")  # from Wednesday to Friday
    write_wide(tmp_path / "a.csv", rows=2, freq="D")
    write_wide(tmp_path / "b.csv", rows=2, freq="D")
    assert [part.frequency for part in parts(SourceConfig(path=str(tmp_path)))] == ["D"] * 3


def test_what_is_wrong_with_a_file_that_is_read_ahead_is_said_with_it(tmp_path: Path):
    write_wide(tmp_path / "a.csv", rows=2)
    text = write_wide(tmp_path / "b.csv").read_text()
    (tmp_path / "b.csv").write_text(text.rstrip().rpartition(",")[0] + ",n.a.")
    with pytest.raises(DataError, match=r"\A\S*b.csv: column 'b' has 'n.a.' at row 80"):
        parts(SourceConfig(path=str(tmp_path)))


def test_notes_tell_their_file(tmp_path: Path):
    write_wide(tmp_path / "a.csv")
    table = pd.read_csv(write_wide(tmp_path / "b.csv"))
    table.loc[3:4, "a"] = np.nan
    table.to_csv(tmp_path / "b.csv", index=False)
    source = SourceConfig(path=str(tmp_path), missing="interpolate")
    none, (note,) = [part.notes for part in parts(source)]
    assert none == ()
    assert note.startswith("b: 2 missing values of column 'a' interpolated")
