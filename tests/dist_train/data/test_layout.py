"""dist_train/data/layout.py: which layout a header means (refusals: test_series)."""

import pandas as pd
import pytest

from dist_train.data.config import DataConfig, DataError
from dist_train.data.layout import split_table

DATES = pd.date_range("2020-01-01", periods=3, freq="h")


@pytest.mark.parametrize(
    ("columns", "keys", "ids"),
    [(["date", "y"], {}, ["own"]),
     (["ds", "unique_id", "y"], {}, ["0", "1"]),
     (["when", "unique_id", "y"], {"date_column": "when"}, ["0", "1"]),
     (["ds", "unique_id", "y"], {"layout": "wide", "date_column": "ds"}, ["own"])],
    ids=["wide", "long", "long, own date name", "asked for wide"],
)  # fmt: skip
def test_the_header_or_the_user_decides(columns: list[str], keys: dict[str, str], ids: list[str]):
    two = pd.concat([pd.DataFrame(dict.fromkeys(columns, DATES))] * 2, ignore_index=True)
    two[columns[1:]] = 1.0
    if "unique_id" in columns:
        two["unique_id"] = [0, 0, 0, 1, 1, 1]
    if ids == ["own"]:
        two = two.iloc[:3]
    parts = list(split_table(two, DataConfig(**keys), "own", (), []))  # type: ignore[arg-type]
    assert [id_ for id_, *_ in parts] == ids


def test_one_column_is_told_to_be_separated_by_something_else():
    table = pd.DataFrame({"date|a": ["2020-01-01|1", "2020-01-02|2"]})
    with pytest.raises(DataError, match=r"the columns are date\|a: .*something else than commas"):
        list(split_table(table, DataConfig(), "own", (), []))


def test_rows_of_a_series_that_is_newest_first_are_refused_or_kept_in_order():
    table = pd.DataFrame({"date": DATES[::-1], "y": [3.0, 2.0, 1.0]})
    with pytest.raises(DataError, match="row 2 .* newest first: turn it round"):
        list(split_table(table, DataConfig(), "own", (), []))
    notes: list[str] = []
    ((_, dates, values, _),) = split_table(table, DataConfig(dates="as_is"), "own", (), notes)
    assert values[:, 0].tolist() == [3, 2, 1]
    assert list(dates) == list(DATES[::-1].to_numpy("datetime64[ns]"))
    assert len(notes) == 1


def test_the_values_of_clean_series_are_those_of_each_looked_at_alone():
    table = pd.DataFrame({"unique_id": [1, 0, 1, 0], "ds": [*DATES[:1], *DATES[:1], *DATES[1:2],
                          *DATES[1:2]], "y": [1.0, 2.0, 3.0, 4.0]})  # fmt: skip
    clean = list(split_table(table, DataConfig(), "own", (), []))
    looked_at = list(split_table(table.astype({"y": object}), DataConfig(), "own", (), []))
    for one, other in zip(clean, looked_at, strict=True):
        assert one[0] == other[0]
        assert one[2].tolist() == other[2].tolist()
    assert [part[2].tolist() for part in clean] == [[[2.0], [4.0]], [[1.0], [3.0]]]
