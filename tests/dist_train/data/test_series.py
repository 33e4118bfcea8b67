"""dist_train/data/series.py and layout.py: from a file as users have it to checked series."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from dist_train.data.config import DataConfig, DataError
from dist_train.data.series import from_table, load_series
from tests.dist_train.data.conftest import WriteCsv


def test_a_wide_file_is_one_series_with_all_its_variates(write_csv: WriteCsv):
    path = write_csv()
    loaded = load_series(DataConfig(path=str(path)))
    table = pd.read_csv(path)
    assert loaded.name == "own"
    assert [one.id for one in loaded.series] == ["own"]
    assert loaded.series[0].columns == ("a", "b")
    assert loaded.series[0].values.dtype == np.float64
    np.testing.assert_array_equal(loaded.series[0].values, table[["a", "b"]].to_numpy())
    np.testing.assert_array_equal(loaded.series[0].dates, table["date"].to_numpy("datetime64[ns]"))
    assert (loaded.frequency, loaded.seasonal_period) == ("h", 24)
    assert loaded.borders == (0.7, 0.1, 0.2)
    assert loaded.notes == ()


def test_the_users_words_win(write_csv: WriteCsv):
    config = DataConfig(
        path=str(write_csv()), columns=["b"], description="mine", seasonal_period=5,
        splits=[0.5, 0.25, 0.25],
    )  # fmt: skip
    loaded = load_series(config)
    assert loaded.series[0].columns == ("b",)
    assert (loaded.description, loaded.seasonal_period) == ("mine", 5)
    assert loaded.borders == (0.5, 0.25, 0.25)


@pytest.mark.parametrize(
    ("keys", "message"),
    [({"columns": ["A"]}, "there is no column 'A'"),
     ({"columns": ["date", "a"]}, "there is no column 'date'"),
     ({"columns": ["a", "a"]}, "names a column twice"),
     ({"columns": []}, "at least one is needed"),
     ({"date_column": "time"}, "data.date_column=time: there is no such column, .*date, a, b"),
     ({"layout": "long", "date_column": "date"}, "data.layout=long: .* no column 'unique_id'")],
)  # fmt: skip
def test_unknown_columns_are_refused(write_csv: WriteCsv, keys: dict[str, object], message: str):
    with pytest.raises(DataError, match=message):
        load_series(DataConfig(path=str(write_csv()), **keys))  # type: ignore[arg-type]


def test_a_file_with_semicolons_is_recognised(write_csv: WriteCsv):
    path = write_csv()
    path.write_text(path.read_text().replace(",", ";"))
    with pytest.raises(DataError, match="something else than commas"):
        load_series(DataConfig(path=str(path)))


def test_a_text_column_is_refused_unless_it_is_left_out(write_csv: WriteCsv):
    path = write_csv(b=["calm"] * 60)
    with pytest.raises(DataError, match="column 'b' has 'calm' at row 1"):
        load_series(DataConfig(path=str(path)))
    assert load_series(DataConfig(path=str(path), columns=["a"])).series[0].columns == ("a",)


def test_missing_values_are_refused_or_filled(write_csv: WriteCsv):
    path = write_csv(a=[0.0, None, 2.0, *range(57)])
    with pytest.raises(
        DataError, match=r"column 'a' has no value at row 2 \(2020-01-01 01:00:00\)"
    ):
        load_series(DataConfig(path=str(path)))
    loaded = load_series(DataConfig(path=str(path), missing="interpolate"))
    assert loaded.series[0].values[1, 0] == 1.0
    (note,) = loaded.notes
    assert note.startswith("1 missing values of column 'a' interpolated: a window")


def long_table() -> pd.DataFrame:
    hours = pd.date_range("2020-01-01", periods=4, freq="h")
    parts = [
        pd.DataFrame({"unique_id": id_, "ds": hours, "y": np.arange(4.0) + offset})
        for id_, offset in (("b", 10), ("a", 0))
    ]
    return pd.concat(parts, ignore_index=True).iloc[[0, 4, 5, 1, 2, 6, 7, 3]]


def test_a_long_table_is_one_series_per_id_in_order_of_ids():
    loaded = from_table(long_table(), DataConfig(), name="own")
    assert [one.id for one in loaded.series] == ["a", "b"]
    for one, offset in zip(loaded.series, (0, 10), strict=True):
        assert one.columns == ("y",)
        np.testing.assert_array_equal(one.values[:, 0], np.arange(4.0) + offset)
    assert loaded.frequency == "h"


def test_the_rows_of_a_message_are_those_of_the_file():
    table = long_table()
    table.iloc[4, 2] = np.nan
    with pytest.raises(DataError, match=r"column 'y' of series 'b' has no value at row 5"):
        from_table(table, DataConfig(), name="own")


def test_a_long_series_out_of_order_is_refused():
    table = long_table().iloc[[0, 2, 1, 3, 4, 5, 6, 7]]
    with pytest.raises(DataError, match=r"row 3 of series 'a' .*the dates go back"):
        from_table(table, DataConfig(), name="own")


def test_long_tables_that_cannot_be_read_are_refused():
    table = long_table()
    table.iloc[2, 0] = None
    with pytest.raises(DataError, match="column 'unique_id' has no value at row 3"):
        from_table(table, DataConfig(), name="own")
    with pytest.raises(DataError, match="series 'b' has 1 row"):
        from_table(long_table().iloc[[0, 1, 2]], DataConfig(), name="own")
    with pytest.raises(DataError, match=r"data.columns: there is no column 'z'"):
        from_table(long_table(), DataConfig(columns=["z"]), name="own")
    with pytest.raises(DataError, match=r"data.columns=\['y', 'x'\].*one variate per series"):
        from_table(long_table().assign(x=1), DataConfig(columns=["y", "x"]), name="own")


def test_an_unused_long_column_is_noted():
    loaded = from_table(long_table().assign(x=1), DataConfig(), name="own")
    assert loaded.notes == ("columns not used: x (a long file is one variate per series)",)


@pytest.mark.parametrize("order", [1, -1])
def test_days_of_one_week_are_business_days_or_not_as_the_other_series_are(order: int):
    for frequency in ("D", "B"):
        days = {"short": pd.date_range("2024-01-01", periods=5, freq="B"),
                "long": pd.date_range("2024-01-01", periods=30, freq=frequency)}  # fmt: skip
        parts = [pd.DataFrame({"unique_id": id_, "ds": own, "y": 1.0}) for id_, own in days.items()]
        loaded = from_table(pd.concat(parts[::order]), DataConfig(), name="own")
        assert loaded.frequency == frequency


def test_series_of_different_frequency_are_refused_or_have_none():
    table = long_table()
    days = pd.DataFrame({"unique_id": "c", "ds": pd.date_range("2020", periods=4), "y": 1.0})
    mixed = pd.concat([table, days])
    with pytest.raises(DataError, match="series 'a' has the frequency h, series 'c' D"):
        from_table(mixed, DataConfig(), name="own")
    loaded = from_table(mixed, DataConfig(dates="as_is"), name="own")
    assert (loaded.frequency, loaded.seasonal_period) == (None, 1)


def test_vic_elec_needs_no_file():
    loaded = load_series(DataConfig())
    assert loaded.series[0].values.shape == (52608, 2)
    assert loaded.series[0].columns == ("Demand", "Temperature")
    assert (loaded.frequency, loaded.seasonal_period) == ("30min", 48)
    assert loaded.notes == ()
    assert len(loaded.checksum) == 64


def test_data_are_checked_without_torch():
    code = (
        "import sys; from dist_train.data.windows import load_forecast_data; "
        "from dist_train.data.config import DataConfig; load_forecast_data(DataConfig()); "
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_configuration_alone_imports_nothing_heavy():
    code = "import sys, dist_train.data.config; assert not {'numpy', 'pandas'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
