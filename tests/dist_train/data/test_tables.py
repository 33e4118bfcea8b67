"""dist_train/data/tables.py: what is not a table is refused with the reason."""

from pathlib import Path

import pandas as pd
import pytest

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
    pytest.param("date,a\n2020-01-01,1\n2020-01-02,1,7,8\n", "as the header", id="long line"),
    pytest.param("date,a\n2020-01-01,1,9\n2020-01-02,1,7\n", "as the header", id="all lines long"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), REFUSALS)
def test_a_broken_csv_is_refused(tmp_path: Path, text: str, message: str):
    with pytest.raises(DataError, match=rf"data.path=.*own.csv .*{message}"):
        read_text(tmp_path / "own.csv", text)


def test_what_is_not_a_file_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="does not exist: check the path"):
        read_table(tmp_path / "none.csv", "data.path=none.csv")
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
