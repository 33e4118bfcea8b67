"""Hostile CSV and Parquet files."""

import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from hypothesis import strategies as st
from pyarrow import parquet

from dist_train.data.config import DataConfig, DataError
from dist_train.data.windows import load_forecast_data
from tests.fuzz.bounds import Reader
from tests.fuzz.mutations import NASTY_TEXT, in_some_encoding, spoilt_bytes, spoilt_lines

ROWS = 40
HOURS = pd.date_range("2020-01-01", periods=ROWS, freq="h")
WIDE = "date,a,b\n" + "".join(f"{hour},{n}.5,{n % 7}\n" for n, hour in enumerate(HOURS))
LONG = "unique_id,ds,y\n" + "".join(
    f"{name},{hour},{n}.5\n" for name in "pq" for n, hour in enumerate(HOURS)
)
KNOWN_BAD_CSV = (
    "date," + ",".join(f"c{n}" for n in range(3000)) + ("\n2020-01-01" + ",1" * 3000) * 3,
    "date,a\n" + '"' + "x" * 1_000_000 + '",1\n' + WIDE.replace(",b", "", 1),
    "date,a\n" + "2020-01-01,1\n" * 20_000,
    "date,a\n" + "\n" * 50_000,
    "date,a\n" + "".join(f"{hour},{n}e-320\n" for n, hour in enumerate(HOURS)),
    "date,a\n" + "".join(f"{hour},{n}e37\n" for n, hour in enumerate(HOURS)),
    "date,a,a.1,a\n" + "".join(f"{hour},1,2,3\n" for hour in HOURS),
)  # fmt: skip
FREQUENCIES = (
    "h", "D", "7ns", "13us", "3ms", "17D", "W-WED", "2W", "MS", "11MS", "2QE", "5YS", "B", "BME",
)  # fmt: skip


@st.composite
def spoilt_cells(draw: st.DrawFn, text: str) -> str:
    """Cells and names replaced by what does not belong there."""
    rows = [line.split(",") for line in text.strip().split("\n")]
    for _ in range(draw(st.integers(1, 5))):
        row = draw(st.sampled_from(rows))
        row[draw(st.integers(0, len(row) - 1))] = draw(st.sampled_from(NASTY_TEXT))
    comma = draw(st.sampled_from([",", ",", ",", ";", "\t", ", "]))
    return "\n".join(comma.join(row) for row in rows) + "\n"


@st.composite
def other_rhythms(draw: st.DrawFn) -> str:
    """Dates of any frequency, from any year on, written in any way."""
    first = draw(st.sampled_from(["1678-01-01", "1969-12-31", "2020-03-29", "2261-01-01"]))
    try:
        dates = pd.date_range(first, periods=ROWS, freq=draw(st.sampled_from(FREQUENCIES)))
    except (pd.errors.OutOfBoundsDatetime, OverflowError):
        dates = HOURS
    order = draw(st.permutations(range(ROWS))) if draw(st.booleans()) else range(ROWS)
    zone = draw(st.sampled_from(["", "", "Z", "+05:30", "-12:00"]))
    return "date,a\n" + "".join(f"{dates[n]}{zone},{n}\n" for n in order)


CSV_INPUTS = (
    st.binary(max_size=200)
    | spoilt_bytes(WIDE.encode())
    | spoilt_bytes(LONG.encode())
    | spoilt_lines(WIDE).flatmap(in_some_encoding)
    | spoilt_lines(LONG).flatmap(in_some_encoding)
    | spoilt_cells(WIDE).flatmap(in_some_encoding)
    | spoilt_cells(LONG).flatmap(in_some_encoding)
    | other_rhythms().map(str.encode)
    | st.sampled_from(KNOWN_BAD_CSV).map(str.encode)
)

TYPES = (
    pa.int8(), pa.uint64(), pa.float16(), pa.float32(), pa.float64(), pa.bool_(), pa.string(),
    pa.large_string(), pa.binary(), pa.binary(4), pa.decimal128(38, 10), pa.decimal256(70, 3),
    pa.date32(), pa.date64(), pa.time32("s"), pa.time64("ns"), pa.timestamp("s"),
    pa.timestamp("ms"), pa.timestamp("us", "UTC"), pa.timestamp("ns", "Europe/Berlin"),
    pa.duration("us"), pa.list_(pa.int64()), pa.struct([("x", pa.int64())]),
    pa.map_(pa.string(), pa.int64()), pa.null(), pa.dictionary(pa.int8(), pa.string()),
)  # fmt: skip
PANDAS_NOTES = (
    b"{", b"{}", b"[]", b"\xff", b"[" * 20_000, b"null",
    b'{"index_columns":["zz"],"columns":[],"column_indexes":[]}',
    b'{"index_columns":[{"kind":"range","start":0,"stop":1000000000000,"step":1,"name":null}],'
    b'"columns":[],"column_indexes":[]}',
    b'{"index_columns":["a"],"columns":[{"name":"a","field_name":"a","pandas_type":"datetimetz",'
    b'"numpy_type":"datetime64[ns]","metadata":{"timezone":"Mars"}}],"column_indexes":[]}',
)  # fmt: skip


def _column(kind: pa.DataType, seed: int) -> pa.Array:
    """Numbers cast to a type where that can be done, else values of its own kind, or nulls."""
    rng = np.random.default_rng(seed)
    choices = (
        np.arange(ROWS), np.zeros(ROWS), rng.integers(-(2**62), 2**62, ROWS),
        rng.normal(size=ROWS) * 10.0 ** rng.integers(-300, 300), HOURS.asi8,
        np.full(ROWS, 2**31 - 1), np.full(ROWS, np.nan),
    )  # fmt: skip
    values = choices[seed % len(choices)]
    own = {
        "list": [[1, 2]], "struct": [{"x": 1}], "map": [[("k", 1)]], "binary": [b"\xff\x00"],
        "fixed_size_binary": [b"abcd"], "string": [str(HOURS[0])], "bool": [True, None],
    }  # fmt: skip
    for made in (
        lambda: pa.array(values).cast(kind, safe=False),
        lambda: pa.array(np.nan_to_num(values).clip(-1e18, 1e18).astype(np.int64)).cast(kind),
        lambda: pa.array((own[str(kind).split("[")[0].split("<")[0]] * ROWS)[:ROWS], kind),
    ):
        try:
            return made()
        except (pa.ArrowException, KeyError, ValueError, TypeError):
            continue
    return pa.array([None] * ROWS).cast(kind)


@st.composite
def parquet_files(draw: st.DrawFn) -> bytes:
    """Files of any schema, with anything in what pandas noted about them."""
    names = draw(st.lists(st.sampled_from(
        ["date", "a", "b", "unique_id", "ds", "y", "", "__index_level_0__", "x\x00", "z" * 5000]
    ), min_size=0, max_size=5))  # fmt: skip
    arrays = [
        pa.array(HOURS)
        if name in ("date", "ds") and draw(st.booleans())
        else _column(draw(st.sampled_from(TYPES)), draw(st.integers(0, 99)))
        for name in names
    ]
    table = pa.Table.from_arrays(arrays, names=names)
    if draw(st.booleans()):
        table = table.slice(0, draw(st.integers(0, ROWS)))
    if draw(st.booleans()):
        table = table.replace_schema_metadata({b"pandas": draw(st.sampled_from(PANDAS_NOTES))})
    return _written(table, draw(st.sampled_from(["snappy", "none", "gzip", "zstd"])))


def _written(table: pa.Table, compression: str = "snappy") -> bytes:
    sink = io.BytesIO()
    try:
        parquet.write_table(table, sink, compression=compression)
    except (pa.ArrowException, ValueError):  # a type that Parquet has no place for
        return b"PAR1"
    return sink.getvalue()


WHOLE_PARQUET = _written(
    pa.table({"date": pa.array(HOURS), "a": np.arange(ROWS) * 0.5, "b": np.arange(ROWS) % 7})
)
PANDAS_PARQUET = _written(
    pa.Table.from_pandas(pd.DataFrame({"a": np.arange(ROWS)}, index=HOURS.rename("date")))
)
WIDE_PARQUET = _written(
    pa.table({"date": pa.array(HOURS), **{f"c{n}": np.ones(ROWS) for n in range(1500)}})
)
PARQUET_INPUTS = (
    st.binary(max_size=200)
    | spoilt_bytes(WHOLE_PARQUET)
    | spoilt_bytes(PANDAS_PARQUET)
    | parquet_files()
    | parquet_files().flatmap(spoilt_bytes)
    | st.sampled_from((WIDE_PARQUET, WHOLE_PARQUET, b"PAR1PAR1"))
)

SETTINGS = st.fixed_dictionaries(
    {
        "layout": st.sampled_from(["auto", "auto", "wide", "long"]),
        "missing": st.sampled_from(["error", "interpolate", "forward"]),
        "dates": st.sampled_from(["strict", "as_is"]),
        "date_column": st.sampled_from([None, None, None, "a", "when"]),
        "columns": st.sampled_from([None, None, None, ["a"], ["b", "a"], ["zz"]]),
    }
)


def write(folder: Path, data: bytes, ending: str, chosen: dict[str, object]) -> Path:
    (folder / f"own.{ending}").write_bytes(data)
    (folder / "settings.json").write_text(json.dumps(chosen))
    return folder / f"own.{ending}"


def read(path: Path) -> None:
    chosen = json.loads((path.parent / "settings.json").read_text())
    data = load_forecast_data(DataConfig(path=str(path), seq_len=8, pred_len=2, **chosen))
    for values in data.windows["train"].values:
        assert np.isfinite(values).all()


def words(path: Path) -> tuple[str, ...]:
    # The series of a wide file has the name of the file.
    return (path.name, "'own'", "data.", "column ", "series ")


CSV_READER = Reader(name="csv", read=read, refusals=(DataError,), words=words)
PARQUET_READER = Reader(name="parquet", read=read, refusals=(DataError,), words=words)
