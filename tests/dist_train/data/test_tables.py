"""dist_train/data/tables.py: what is not a table is refused with the reason."""

import os
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
from pandas._libs.parsers import STR_NA_VALUES
from pyarrow import parquet

from dist_train.data.config import DataError
from dist_train.data.tables import read_table


def read_text(path: Path, text: str | bytes) -> pd.DataFrame:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_table(path, f"data.path={path}")[0]


REFUSALS = [
    pytest.param("", "is empty: a header line and rows", id="empty"),
    pytest.param("\n\n", "is not a readable CSV file", id="blank lines"),
    pytest.param("date,a\n", "has 0 rows below its header", id="header only"),
    pytest.param("date,a\n2020-01-01,1\n", "has 1 rows below its header", id="one row"),
    pytest.param("date,a,a\n2020-01-01,1,2\n", "more than one column named 'a'", id="same name"),
    pytest.param("\n \ndate,a,a\n2020-01-01,1,2\n", "column named 'a'", id="same name, lower"),
    pytest.param("date;a\n2020-01-01;0,5\n2020-01-02;1,5\n", "something else than commas, "
                 "semicolons: its header is 'date;a'. Save it with commas", id="European"),
    pytest.param("date\ta\n2020-01-01\t1\n2020-01-02\t2\n", "than commas, tabs", id="tabs"),
    pytest.param("date;\u00b5\n2020-01-01;0,5\n".encode("latin-1"), "semicolons", id="Excel"),
    pytest.param("date,a\n2020-01-01,1\n2020-01-02,1,7,8\n", "as the header", id="long line"),
    pytest.param("date,a\n".encode("utf-16"), "is UTF-16 or UTF-32 text: save it", id="UTF-16"),
    pytest.param("date," + "x" * 200_000 + "\n", "field larger than field limit", id="long name"),
    pytest.param("date,a\n2020-01-01,1,9\n2020-01-02,1,7\n", "as the header", id="all lines long"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), REFUSALS)
def test_a_broken_csv_is_refused(tmp_path: Path, text: str | bytes, message: str):
    with pytest.raises(DataError, match=rf"data.path=.*own.csv .*{message}"):
        read_text(tmp_path / "own.csv", text)


IDS = ["NA", "007", "7", "1e5", "1.0", "null", " x", "True", "2020-01-01"]


@pytest.mark.parametrize("at", [0, 1, 2])
def test_ids_stay_as_they_are_written(tmp_path: Path, at: int):
    rows = [["2020-01-01", "1"], ["2020-01-02", "2"]]
    lines = [["ds", "y"], *(list(row) for _ in IDS for row in rows)]
    for line, id_ in zip(lines, ["unique_id", *(id_ for id_ in IDS for _ in rows)], strict=True):
        line.insert(at, id_)
    table = read_text(tmp_path / "own.csv", "\n".join(",".join(line) for line in lines))
    assert list(table["unique_id"][::2]) == IDS


def test_a_series_of_a_long_file_is_not_cut_in_two(tmp_path: Path):
    """pandas reads piece by piece: what are numbers in one piece is text in the next."""
    ids = [f"{number:05d}" for number in range(300)] + ["0001A"]
    others = [f"c{number}" for number in range(1000)]  # the more columns, the shorter a piece
    text = ",".join(["unique_id", "ds", "y", *others]) + "\n"
    text += "".join(f"{id_},2020-01-01,1{',' * len(others)}\n" * 8 for id_ in ids)
    table = read_text(tmp_path / "own.csv", text)
    with pytest.warns(pd.errors.DtypeWarning, match="unique_id"):
        pd.read_csv(tmp_path / "own.csv")
    counts = table["unique_id"].value_counts()
    assert sorted(counts.index) == sorted(ids)
    assert set(counts) == {8}


def test_an_empty_id_is_missing(tmp_path: Path):
    table = read_text(tmp_path / "own.csv", "unique_id,ds,y\na,2020-01-01,1\n,2020-01-02,2\n")
    assert table["unique_id"].isna().tolist() == [False, True]


def test_what_is_missing_beside_ids_is_what_pandas_says_is(tmp_path: Path):
    cells = [*sorted(STR_NA_VALUES), "nul", "-", "1.5"]
    text = "unique_id,ds,y,,text\n" + "".join(f"a,{c},{c},{c},x{c}\n" for c in cells)
    table = read_text(tmp_path / "own.csv", text).drop(columns="unique_id")
    expected = pd.read_csv(tmp_path / "own.csv", index_col=False).drop(columns="unique_id")
    pd.testing.assert_frame_equal(table, expected)
    assert table["y"].isna().sum() == len(STR_NA_VALUES)


def test_what_is_not_a_file_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="does not exist: check the path"):
        read_table(tmp_path / "none.csv", "data.path=none.csv")
    with pytest.raises(DataError, match="cannot be read .File name too long.: check the path"):
        read_table(Path("a" * 5000), "data.path=a")
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(DataError, match="is not a file: name a CSV or Parquet file"):
        read_table(tmp_path / "pipe.csv", "data.path=pipe.csv")
    with pytest.raises(DataError, match="is a folder: name a CSV or Parquet file"):
        read_table(tmp_path, "data.path=folder")


def test_a_broken_parquet_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="is not a readable Parquet file"):
        read_text(tmp_path / "own.parquet", "date,a\n2020-01-01,1\n")


@pytest.mark.parametrize("dates_as_index", [False, True])
def test_parquet_reads_like_csv(tmp_path: Path, dates_as_index: bool):
    table = pd.DataFrame({"date": pd.date_range("2020", periods=3), "a": [1.0, 2.0, 3.0]})
    (table.set_index("date") if dates_as_index else table).to_parquet(tmp_path / "own.parquet")
    got, notes = read_table(tmp_path / "own.parquet", "data.path=own.parquet")
    pd.testing.assert_frame_equal(got[["date", "a"]], table)
    assert notes == []


def test_a_byte_order_mark_is_not_part_of_the_first_name(tmp_path: Path):
    table = read_text(tmp_path / "own.csv", b"\xef\xbb\xbfdate,a\n2020-01-01,1\n2020-01-02,2\n")
    assert list(table.columns) == ["date", "a"]


def test_a_byte_order_mark_hides_no_repeated_name(tmp_path: Path):
    with pytest.raises(DataError, match="more than one column named 'a'"):
        read_text(tmp_path / "own.csv", b"\xef\xbb\xbfa,a\n1,2\n1,2\n")


def test_a_latin_1_file_is_read_and_noted(tmp_path: Path):
    path = tmp_path / "own.csv"
    path.write_bytes("date,W/m\u00b2\n2020-01-01,1\n2020-01-02,2\n".encode("latin-1"))
    table, notes = read_table(path, "data.path=own.csv")
    assert list(table.columns) == ["date", "W/m\u00b2"]
    assert notes == ["own.csv is not UTF-8; it was read as Latin-1"]


@pytest.mark.parametrize("ending", ["csv.gz", "csv.zip", "CSV.ZST", "parquet.bz2", "tar"])
def test_a_compressed_file_is_refused_before_it_is_unpacked(tmp_path: Path, ending: str):
    with pytest.raises(DataError, match=f"own.{ending} is compressed: unpack it"):
        read_text(tmp_path / f"own.{ending}", "date,a\n2020-01-01,1\n2020-01-02,2\n")


@pytest.mark.parametrize("note", [b"{", b"{}", b"[]", b"\xff", b"[" * 20_000])
def test_what_pandas_noted_in_a_parquet_file_decides_nothing(tmp_path: Path, note: bytes):
    table = pa.table({"date": pa.array([1, 2], pa.timestamp("s")), "a": [1.0, 2.0]})
    parquet.write_table(table.replace_schema_metadata({b"pandas": note}), tmp_path / "own.parquet")
    got, _ = read_table(tmp_path / "own.parquet", "data.path=own.parquet")
    assert got["a"].tolist() == [1.0, 2.0]


def test_rows_of_a_parquet_file_that_were_numbered_have_no_column_of_numbers(tmp_path: Path):
    table = pd.DataFrame({"date": pd.date_range("2020", periods=4), "a": 1.0}).iloc[[1, 3]]
    table.to_parquet(tmp_path / "own.parquet")
    got, _ = read_table(tmp_path / "own.parquet", "data.path=own.parquet")
    assert list(got.columns) == ["date", "a"]


def test_a_small_parquet_file_of_too_many_rows_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    rows = 10**6
    table = pa.table({"date": pa.nulls(rows, pa.timestamp("s")), "a": pa.nulls(rows, pa.int64())})
    parquet.write_table(table, tmp_path / "own.parquet")
    assert (tmp_path / "own.parquet").stat().st_size < 100_000
    monkeypatch.setattr("os.sysconf", lambda name: 4096 if name == "SC_PAGE_SIZE" else 1000)
    monkeypatch.setattr(parquet.ParquetFile, "read", lambda *_: pytest.fail("it was read"))
    with pytest.raises(DataError, match="has 1000000 rows and 2 columns, which need"):
        read_table(tmp_path / "own.parquet", "data.path=own.parquet")


def test_a_table_that_does_not_fit_in_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def no_memory(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(pd, "read_csv", no_memory)
    with pytest.raises(DataError, match="needs more memory than there is"):
        read_text(tmp_path / "own.csv", "date,a\n")


def test_repeated_names_among_many_are_found_in_a_moment(tmp_path: Path):
    names = [f"c{number}" for number in range(60_000)]
    with pytest.raises(DataError, match="more than one column named 'c7'"):
        read_text(tmp_path / "own.csv", ",".join([*names, "c7"]) + "\n")
