"""dist_train/data/arrow_series.py: built sources are mapped, whole, and refuse what is damaged."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dist_train.data import arrow_series
from dist_train.data.arrow_series import (
    FACTS_FILE,
    SERIES_FILE,
    is_built,
    is_source,
    make_room,
    open_series,
    read_facts,
    settings_of,
    verify,
    write_series,
)
from dist_train.data.config import DataConfig, DataError, SourceConfig
from dist_train.data.series import Series, SeriesSet
from dist_train.data.source_files import parts_of
from memory_index.manifest import checksum_of
from tests.helpers.corpora import build_one, write_long, write_wide
from tests.helpers.small_disk import small_disk

ROOT = Path(__file__).parents[3]
DAMAGED = "copy the whole folder again, or delete it and run timellm data build"


@pytest.fixture
def source(tmp_path: Path) -> SourceConfig:
    return SourceConfig(path=str(write_wide(tmp_path / "own.csv", rows=40)))


@pytest.fixture
def folder(tmp_path: Path, source: SourceConfig) -> Path:
    build_one(source, tmp_path / "built")
    return tmp_path / "built"


def opened(folder: Path, **keys: object) -> SeriesSet:
    arrow_series._reader.cache_clear()
    source = SourceConfig(path=str(folder), **keys)  # type: ignore[arg-type]
    return open_series(folder, source, "own")


def test_facts_tell_what_was_written(folder: Path, source: SourceConfig):
    built = verify(folder)
    assert built == read_facts(folder)
    assert (built.name, built.frequency, built.seasonal_period) == ("own", "h", 24)
    assert (built.ids, built.rows) == (("own/a", "own/b"), (40, 40))
    assert (built.begins, built.ends) == ("2020-01-01 00:00:00", "2020-01-02 15:00:00")
    assert built.settings == settings_of(source)
    assert is_built(folder)
    assert is_source(folder)
    assert sorted(path.name for path in folder.iterdir()) == [SERIES_FILE, FACTS_FILE]


def test_values_are_mapped_and_nobody_can_change_them(folder: Path):
    file = (folder / SERIES_FILE).resolve()
    for series in opened(folder).series:
        assert series.standardised is not None
        for array in (series.dates, series.values, series.standardised.values):
            assert not array.flags.owndata
            assert not array.flags.writeable
            assert file_below(array) == file


def file_below(array: np.ndarray, process: int | str = "self") -> Path | None:
    """The file of whose pages an array is, if it is of any."""
    address = array.__array_interface__["data"][0]
    for line in Path(f"/proc/{process}/maps").read_text().splitlines():
        begin, end = (int(number, 16) for number in line.split()[0].split("-"))
        if begin <= address < end:
            fields = line.split(maxsplit=5)
            return Path(fields[5]) if len(fields) == 6 and fields[5].startswith("/") else None
    return None


def test_workers_read_the_same_pages(folder: Path):
    values = opened(folder).series[1].values
    child = os.fork()
    if child == 0:
        try:
            whole = values.sum() != 0 and file_below(values) == (folder / SERIES_FILE).resolve()
        finally:
            os._exit(0 if whole else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_twenty_thousand_series_are_opened_in_seconds(tmp_path: Path):
    count, rows = 20_000, 24
    dates = np.datetime64("2020-01-01", "ns") + np.arange(rows) * np.timedelta64(1, "h")
    values = np.random.default_rng(0).normal(size=(count, rows, 1))
    series = tuple(
        Series(id=f"many/{n}", dates=dates, values=values[n], columns=("y",)) for n in range(count)
    )
    whole = SeriesSet(
        name="many", series=series, frequency="h", seasonal_period=24, description="",
        borders=(0.7, 0.1, 0.2), checksum="",
    )  # fmt: skip
    write_series(tmp_path / "many", "many", [whole], {})
    began = time.monotonic()
    found = open_series(tmp_path / "many", SourceConfig(path=str(tmp_path / "many")), "many")
    assert time.monotonic() - began < 10
    np.testing.assert_array_equal(found.series[-1].values, values[-1])


def test_the_entry_may_describe_it_anew(folder: Path):
    found = opened(folder, description="other words", seasonal_period=7)
    assert (found.description, found.seasonal_period) == ("other words", 7)
    assert opened(folder).description == ""


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"splits": [0.5, 0.25, 0.25]}, r"splits=.0.5, 0.25, 0.25.: .* was built with None"),
        ({"missing": "interpolate"}, "missing='interpolate': .* was built with 'error'; leave it"),
        ({"columns": ["a"]}, "columns=.'a'.: .* build it anew with it"),
        ({"dates": "as_is"}, "dates='as_is'"),
        ({"layout": "long"}, "layout='long'"),
        ({"date_column": "x"}, "date_column='x'"),
    ],
)
def test_what_building_decided_is_not_asked_for_anew(
    folder: Path, keys: dict[str, object], message: str
):
    with pytest.raises(DataError, match=message):
        opened(folder, **keys)


def test_what_it_was_built_with_may_be_said_again(tmp_path: Path, source: SourceConfig):
    keys = {"columns": ["b"], "splits": [0.5, 0.25, 0.25], "missing": "interpolate"}
    build_one(replace(source, **keys), tmp_path / "built")  # type: ignore[arg-type]
    found = opened(tmp_path / "built", **keys)
    assert found.borders == (0.5, 0.25, 0.25)
    assert len(found.series) == 1


def test_published_splits_stay_counts_of_rows(tmp_path: Path):
    (part,) = parts_of(DataConfig(), SourceConfig(path=str(write_wide(tmp_path / "own.csv"))))
    write_series(tmp_path / "built", "own", [replace(part, borders=(50, 10, 15))], {})
    assert opened(tmp_path / "built").borders == (50, 10, 15)


def test_a_series_without_training_rows_is_kept_for_who_may_leave_it_out(tmp_path: Path):
    path = write_long(tmp_path / "own.csv", {"x": 40, "y": 2})
    build_one(SourceConfig(path=str(path), splits=[0.4, 0.3, 0.3]), tmp_path / "built")
    short = opened(tmp_path / "built").series[1]
    assert short.standardised is not None
    np.testing.assert_array_equal(short.standardised.values, short.values.astype(np.float32))


def test_nothing_is_written_over(folder: Path, source: SourceConfig):
    before = (folder / FACTS_FILE).read_bytes()
    with pytest.raises(DataError, match="built exists and is no source: move it away"):
        build_one(source, folder)
    assert (folder / FACTS_FILE).read_bytes() == before


def test_a_failure_leaves_nothing(tmp_path: Path):
    write_wide(tmp_path / "a.csv")
    (tmp_path / "b.csv").write_text("date,a\n2020-01-01,1\n2020-01-02,x\n")
    with pytest.raises(DataError, match="b.csv"):
        build_one(SourceConfig(path=str(tmp_path)), tmp_path / "built" / "s")
    assert not (tmp_path / "built" / "s").exists()


def test_what_a_killed_build_left_is_swept(tmp_path: Path, source: SourceConfig):
    folder = tmp_path / "built"
    folder.mkdir()
    (folder / f".{SERIES_FILE}.4711").write_bytes(b"half")
    (folder / SERIES_FILE).write_bytes(b"whole, but not told of")
    assert not is_built(folder)
    with pytest.raises(DataError, match="source.json cannot be read"):
        opened(folder)
    build_one(source, folder)
    verify(folder)
    assert sorted(path.name for path in folder.iterdir()) == [SERIES_FILE, FACTS_FILE]


def test_only_what_a_build_leaves_is_swept(tmp_path: Path):
    (tmp_path / "own.txt").write_text("mine")
    with pytest.raises(DataError, match="exists and is no source"):
        make_room(tmp_path)
    with pytest.raises(DataError, match="exists and is no source"):
        make_room(tmp_path / "own.txt")
    assert (tmp_path / "own.txt").read_text() == "mine"


@pytest.mark.parametrize("name", [".notes.2024", ".lock", ".series.arrow.old", ".sources.yaml.7"])
def test_a_hidden_file_of_somebody_else_is_refused_and_nothing_is_swept(tmp_path: Path, name: str):
    names = {name, f".{SERIES_FILE}.4711", f".{FACTS_FILE}.4711"}
    for one in names:
        (tmp_path / one).write_text("mine")
    with pytest.raises(DataError, match="exists and is no source"):
        make_room(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == names
    (tmp_path / name).unlink()
    make_room(tmp_path)
    assert not any(tmp_path.iterdir())


KILLED = """
import sys, pathlib
from dist_train.data import arrow_series
from dist_train.data.config import DataConfig, SourceConfig
from dist_train.data.source_files import parts_of
source = SourceConfig(path=sys.argv[1])
def parts():
    for number, part in enumerate(parts_of(DataConfig(), source)):
        if number == 2:
            print("now", flush=True)
            sys.stdin.read()
        yield part
arrow_series.write_series(pathlib.Path(sys.argv[2]), "own", parts(), {})
"""


def test_a_killed_build_is_none_and_the_next_one_is(tmp_path: Path):
    for n in range(3):
        write_wide(tmp_path / f"s{n}.csv", seed=n)
    folder = tmp_path / "built"
    command = [sys.executable, "-c", KILLED, str(tmp_path), str(folder)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"now\n"
        process.send_signal(signal.SIGKILL)
    assert [path.name for path in folder.iterdir()] == [f".{SERIES_FILE}.{process.pid}"]
    assert not is_source(folder)
    build_one(SourceConfig(path=str(tmp_path)), folder)
    assert len(verify(folder).ids) == 6
    assert len(list(folder.iterdir())) == 2


def test_a_full_disk_is_told_and_nothing_is_left(tmp_path: Path, source: SourceConfig):
    write_wide(tmp_path / "own.csv", rows=20_000)
    pages = -(-build_one(source, tmp_path / "whole").bytes // 4096)
    # At the first bytes, in the middle, and when the values are there and the facts are not.
    for kib, file in ((4, SERIES_FILE), (2 * pages, SERIES_FILE), (4 * pages, FACTS_FILE)):
        with small_disk(tmp_path / f"disk{kib}", kib) as disk:
            with pytest.raises(OSError, match="No space left") as refusal:
                build_one(source, disk / "built")
            assert refusal.value.errno == errno.ENOSPC
            assert refusal.value.filename == str(disk / "built" / file)
            assert list(disk.iterdir()) == []


@settings(
    deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(place=st.integers(0, 10**6), value=st.integers(1, 255))
def test_every_flip_in_the_facts_is_noticed_at_opening(folder: Path, place: int, value: int):
    flip(folder / FACTS_FILE, place, value, lambda: opened(folder))


@settings(
    deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(place=st.integers(0, 10**6), value=st.integers(1, 255))
def test_every_flip_in_the_values_is_noticed_by_verifying(folder: Path, place: int, value: int):
    flip(folder / SERIES_FILE, place, value, lambda: verify(folder))


@settings(
    deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(place=st.integers(0, 10**6), value=st.integers(1, 255))
def test_opening_what_was_flipped_ends_with_series_or_a_refusal(
    folder: Path, place: int, value: int
):
    whole = (folder / SERIES_FILE).read_bytes()
    broken = bytearray(whole)
    broken[place % len(whole)] ^= value
    (folder / SERIES_FILE).write_bytes(broken)
    try:
        for series in opened(folder).series:
            assert series.values.shape == (40, 1)
            bytes(series.values.tobytes())
    except DataError as error:
        assert DAMAGED in str(error)  # noqa: PT017
    finally:
        (folder / SERIES_FILE).write_bytes(whole)


def flip(path: Path, place: int, value: int, load: object) -> None:
    whole = path.read_bytes()
    broken = bytearray(whole)
    broken[place % len(whole)] ^= value
    path.write_bytes(broken)
    try:
        with pytest.raises(DataError, match=DAMAGED):
            load()  # type: ignore[operator]
    finally:
        path.write_bytes(whole)


def test_the_same_content_in_other_bytes_is_noticed(folder: Path):
    path = folder / FACTS_FILE
    path.write_text(json.dumps(json.loads(path.read_bytes()), indent=1))
    with pytest.raises(DataError, match="altered since it was written"):
        read_facts(folder)


@pytest.mark.parametrize("name", [FACTS_FILE, SERIES_FILE])
@pytest.mark.parametrize("keep", [0, 1, 100, -1])
def test_a_truncated_file_is_refused(folder: Path, name: str, keep: int):
    path = folder / name
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=f"{name}: .*{DAMAGED}"):
        opened(folder)


@pytest.mark.parametrize(
    "text",
    ["", "null", "[]", "{}", '{"own": 3}', "[" * 100_000, "9" * 5000, "\ufeff{}",
     '{"own": {}, "format": 1}'],
)  # fmt: skip
def test_other_json_is_refused(folder: Path, text: str):
    (folder / FACTS_FILE).write_text(text)
    with pytest.raises(DataError, match=f"{FACTS_FILE}: .*{DAMAGED}"):
        read_facts(folder)


def write_facts(folder: Path, **changes: object) -> None:
    """Write facts that carry a right checksum."""
    path = folder / FACTS_FILE
    content = {**json.loads(path.read_bytes()), **changes}
    del content["own"]
    content = {key: value for key, value in content.items() if value is not None}
    path.write_text(json.dumps({**content, "own": checksum_of(content)}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "of another version, this one reads 1"),
        ({"format": None}, "not what a built source has"),
        ({"new": 1}, "not what a built source has"),
        ({"mean": None}, "not what a built source has"),
        ({"bytes": 7}, "missing, or not of its 7 bytes"),
        ({"rows": [40, 39]}, "series.arrow: not what its source.json says"),
        ({"rows": [40]}, "series.arrow: not what its source.json says"),
        ({"ids": ["own/a"]}, "series.arrow: not what its source.json says"),
    ],
)
def test_facts_of_something_else_are_refused(
    folder: Path, changes: dict[str, object], message: str
):
    write_facts(folder, **changes)
    with pytest.raises(DataError, match=f"{message}; {DAMAGED}"):
        opened(folder)


def test_another_file_of_the_same_size_is_refused(folder: Path):
    file = folder / SERIES_FILE
    file.write_bytes(b"\0" * file.stat().st_size)
    with pytest.raises(DataError, match="not what its source.json says"):
        opened(folder)
    with pytest.raises(DataError, match="altered since it was written"):
        verify(folder)


@pytest.mark.parametrize("name", [FACTS_FILE, SERIES_FILE])
def test_a_pipe_is_not_waited_for(folder: Path, name: str):
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(DataError, match=DAMAGED):
        opened(folder)


def test_ids_may_hold_any_sign(tmp_path: Path):
    ids = {"../../up": 40, "/root": 40, "a" * 3000: 40, "\u4e2d\u6587 \U0001f600": 40, "..": 40}
    path = write_long(tmp_path / "own.parquet", ids)
    build_one(SourceConfig(path=str(path)), tmp_path / "deep" / "built")
    assert {one.id for one in opened(tmp_path / "deep" / "built").series} == {
        f"own/{id_}" for id_ in ids
    }
    assert {path.name for path in tmp_path.iterdir()} == {"own.parquet", "deep"}
    assert len(list((tmp_path / "deep" / "built").iterdir())) == 2
