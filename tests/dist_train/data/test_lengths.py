"""dist_train/data/lengths.py: series that are too short are refused, or left out and counted."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_train.data.config import DataConfig, DataError, SourceConfig
from dist_train.data.lengths import fits, num_windows, oldest_rows
from dist_train.data.splits import borders
from dist_train.data.windows import ForecastData, load_forecast_data
from tests.helpers.corpora import windows_of, write_long, write_wide


@pytest.mark.parametrize(
    ("rows", "context_before", "stride", "count"),
    [(12, False, 1, 1), (11, False, 1, 0), (20, False, 1, 9), (20, False, 4, 3), (4, True, 1, 1),
     (3, True, 1, 0), (0, True, 1, 0)],
)  # fmt: skip
def test_windows_are_counted(rows: int, context_before: bool, stride: int, count: int):
    assert num_windows(rows, 8, 4, context_before, stride) == count


@settings(deadline=None)
@given(rows=st.integers(0, 200), seq_len=st.integers(1, 20), pred_len=st.integers(1, 20))
def test_what_fits_has_a_window_in_every_split(rows: int, seq_len: int, pred_len: int):
    split = borders(rows, (0.7, 0.1, 0.2))
    counts = [
        num_windows(end - begin, seq_len, pred_len, name != "train")
        for name, (begin, end) in split.items()
    ]
    assert fits(split, seq_len, pred_len) == all(counts)


@pytest.fixture
def short(tmp_path: Path) -> SourceConfig:
    """Five series, of which two are too short for windows of 8 + 4 rows."""
    rows = {"a": 60, "b": 2, "c": 50, "d": 30, "e": 45}
    return SourceConfig(path=str(write_long(tmp_path / "long.csv", rows)))


def load(*sources: SourceConfig, **keys: object) -> ForecastData:
    return load_forecast_data(windows_of(list(sources), **keys))


def test_the_first_one_is_refused_with_the_remedy(short: SourceConfig):
    message = (
        "series 'long/b' has 2 rows, split into 1/1/0 .*: too short for data.seq_len=8 .* rows are "
        "needed; bring more, .* or leave such series out with too_short: skip in their source"
    )
    with pytest.raises(DataError, match=message):
        load(short)


def test_others_are_left_out_and_counted_in_one_note(short: SourceConfig):
    data = load(replace(short, too_short="skip"))
    assert [one.id for one in data.series_set.series] == ["long/a", "long/c", "long/e"]
    assert data.series_set.notes == (
        "2 of 5 series are too short for data.seq_len=8 and data.pred_len=4, and left out",
    )
    assert len(data.scalers) == len(data.split_rows) == len(data.memory_rows) == 3
    assert data.sources[0].series_set.notes == data.series_set.notes


def test_sources_keep_their_places(tmp_path: Path, short: SourceConfig):
    wide = SourceConfig(path=str(write_wide(tmp_path / "wide.csv")))
    data = load(replace(short, too_short="skip"), wide)
    assert data.first_series.tolist() == [0, 3, 5]
    assert data.series_set.notes[0].startswith("long: 2 of 5 series")
    assert data.only(1).series_set.name == "wide"


def test_a_source_of_which_nothing_is_left_is_refused(short: SourceConfig):
    config = replace(windows_of([replace(short, too_short="skip")]), seq_len=500)
    words = r"data.sources\[0\] \(long\): all 5 series are too short for data.seq_len=500"
    with pytest.raises(DataError, match=words):
        load_forecast_data(config)


def test_nothing_is_noted_where_all_are_long_enough(tmp_path: Path):
    wide = SourceConfig(path=str(write_wide(tmp_path / "wide.csv")), too_short="skip")
    assert load(wide).series_set.notes == ()


def test_a_share_without_a_window_is_no_training_for_that_series(short: SourceConfig):
    few = replace(short, percent=20, too_short="skip")
    data = load(few)
    # 42 training rows of the longest leave 14 of them, 12 are needed; 31 leave 12, 35 leave 13.
    assert [end for _, end in data.windows["train"].ranges] == [14, 13, 12]
    data = load(replace(few, percent=15))
    assert data.windows["train"].ranges == ((0, 13), (0, 12), (0, 0))
    assert data.memory_rows == data.windows["train"].ranges
    assert len(data.windows["test"]) == len(load(few).windows["test"])
    assert data.series_set.notes == (
        "2 of 5 series are too short for data.seq_len=8 and data.pred_len=4, and left out; "
        "percent=15 leaves 1 series no training window",
    )
    with pytest.raises(DataError, match="data.percent=15 leaves 11 training rows of series 'e'"):
        oldest_rows((0, 31), 15, DataConfig(seq_len=8, pred_len=4), "series 'e'", "error")


def test_a_share_that_is_too_small_is_said_by_its_own_key(tmp_path: Path):
    target = SourceConfig(path=str(write_wide(tmp_path / "b.csv")), memory_percent=1)
    words = r"data.sources\[1\] \(b\): memory_percent=1 leaves 8 training rows of series 'b/"
    with pytest.raises(DataError, match=words):
        load(SourceConfig(path=str(write_wide(tmp_path / "a.csv"))), target)


def test_a_source_that_is_scored_only_has_no_note(tmp_path: Path):
    target = SourceConfig(
        path=str(write_wide(tmp_path / "b.csv")), percent=0, memory_percent=100, too_short="skip"
    )
    data = load(SourceConfig(path=str(write_wide(tmp_path / "a.csv"))), target)
    assert data.series_set.notes == ()
    assert data.windows["train"].ranges[2:] == ((0, 0), (0, 0))
    assert data.memory_rows[2:] == ((0, 56), (0, 56))


def test_a_thousand_notes_of_a_kind_are_a_few(tmp_path: Path):
    table = pd.read_csv(write_long(tmp_path / "a.csv", {f"s{n:03}": 60 for n in range(30)}))
    table["y"] = 1.0
    table.to_csv(tmp_path / "a.csv", index=False)
    notes = load(SourceConfig(path=str(tmp_path / "a.csv"))).series_set.notes
    assert len(notes) == 9
    assert notes[0] == "column 'y' of series 'a/s000' is constant in the training rows"
    assert notes[-1] == "22 more notes of this kind"
