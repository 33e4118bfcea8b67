"""dist_train/data/windows.py: which windows there are, and what is in them."""

import re
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_train.data.config import DataConfig, DataError
from dist_train.data.dates import calendar_phase
from dist_train.data.lengths import num_windows
from dist_train.data.series import SeriesSet, from_table
from dist_train.data.windows import WindowSet, build_forecast_data
from tests.helpers.forecast_data import data_of_sources, source_of

CONFIG = DataConfig(seq_len=8, pred_len=4)


def wide(rows: int = 100, seed: int = 0, **columns: object) -> SeriesSet:
    values = np.random.default_rng(seed).normal(10, 5, (rows, 2))
    table = pd.DataFrame({"date": pd.date_range("2020", periods=rows, freq="h")})
    table = table.assign(a=values[:, 0], b=values[:, 1], **columns)
    return from_table(table, CONFIG, name="own")


def long(*rows: int) -> SeriesSet:
    parts = [
        pd.DataFrame(
            {
                "unique_id": f"s{number}",
                "ds": pd.date_range("2020", periods=count, freq="h"),
                "y": np.random.default_rng(number).normal(number, number + 1, count),
            }
        )
        for number, count in enumerate(rows)
    ]
    return from_table(pd.concat(parts), CONFIG, name="own")


@given(st.integers(0, 60), st.integers(1, 9), st.integers(1, 9), st.booleans(), st.integers(1, 5))
def test_the_count_is_that_of_an_obvious_loop(
    rows: int, seq_len: int, pred_len: int, context_before: bool, stride: int
):
    begin = -seq_len if context_before else 0
    fitting = [s for s in range(begin, rows, stride) if s + seq_len + pred_len <= rows]
    assert num_windows(rows, seq_len, pred_len, context_before, stride) == len(fitting)


def test_the_splits_have_the_published_number_of_windows():
    data = build_forecast_data(CONFIG, wide(100))
    counts = {split: len(windows) for split, windows in data.windows.items()}
    assert counts == {
        "train": 70 - 8 - 4 + 1, "val": 10 - 4 + 1, "val_selection": 10 - 4 + 1,
        "test": 20 - 4 + 1,
    }  # fmt: skip


def test_every_target_row_of_val_and_test_is_forecast_and_no_other():
    data = build_forecast_data(CONFIG, wide(100))
    for split, (begin, end) in {"train": (8, 70), "val": (70, 80), "test": (80, 100)}.items():
        starts = [data.windows[split].locate(i)[1] for i in range(len(data.windows[split]))]
        targets = {start + 8 + step for start in starts for step in range(4)}
        assert targets == set(range(begin, end))


@pytest.mark.parametrize("stride", [1, 3])
def test_windows_are_slices_of_their_series(stride: int):
    rng = np.random.default_rng(0)
    values = [rng.normal(size=(rows, 2)).astype(np.float32) for rows in (30, 14, 25)]
    ranges = [(2, 30), (0, 14), (5, 21)]
    windows = WindowSet(values, ranges, 8, 4, stride)
    expected = [
        (number, start)
        for number, (begin, end) in enumerate(ranges)
        for start in range(begin, end - 8 - 4 + 1, stride)
    ]
    assert len(windows) == len(expected)
    ids = [*rng.permutation(len(expected)).tolist(), 0, 0]

    contexts, targets = windows.batch(ids)

    assert contexts.shape == (len(ids), 8, 2)
    assert contexts.dtype == targets.dtype == np.float32
    for position, window in enumerate(ids):
        number, start = expected[window]
        assert windows.locate(window) == (number, start)
        context, target = values[number][start : start + 8], values[number][start + 8 : start + 12]
        np.testing.assert_array_equal(contexts[position], context)
        np.testing.assert_array_equal(targets[position], target)
        np.testing.assert_array_equal(windows.context(window), context)
        np.testing.assert_array_equal(windows.target(window), target)


def test_the_time_of_year_is_that_of_the_last_row_seen():
    dates = [pd.date_range(first, periods=30, freq="D").to_numpy() for first in ("2020", "2021-06")]
    values = [np.zeros((30, 1), dtype=np.float32)] * 2
    windows = WindowSet(values, [(0, 30), (3, 30)], 8, 4, dates=dates)
    ids = [0, 18, 19, 34]  # first and last window of either series
    ends = [dates[0][7], dates[0][25], dates[1][10], dates[1][25]]
    np.testing.assert_array_equal(windows.calendar_phase(ids), calendar_phase(np.array(ends)))
    assert WindowSet(values, [(0, 30)] * 2, 8, 4).calendar_phase(ids) is None


@pytest.mark.parametrize("window", [-1, 9])
def test_a_number_without_a_window_is_refused(window: int):
    windows = WindowSet([np.zeros((20, 1), dtype=np.float32)], [(0, 20)], 8, 4)
    with pytest.raises(IndexError, match=r"window ids must be in \[0, 9\)"):
        windows.batch([0, window])


@settings(max_examples=25, deadline=None)
@given(st.integers(70, 99), st.integers(0, 1), st.floats(-1e6, 1e6))
def test_nothing_after_the_training_rows_changes_what_is_fitted(row: int, n: int, value: float):
    series_set = wide()
    one = series_set.series[0]
    changed = one.values.copy()
    changed[row, n] = value
    before = build_forecast_data(CONFIG, series_set)
    after = build_forecast_data(CONFIG, replace(series_set, series=(replace(one, values=changed),)))
    np.testing.assert_array_equal(before.scalers[0].mean, after.scalers[0].mean)
    np.testing.assert_array_equal(before.scalers[0].scale, after.scalers[0].scale)
    np.testing.assert_array_equal(before.train_values(0), after.train_values(0))
    every = range(len(before.windows["train"]))
    for mine, other in zip(
        before.windows["train"].batch(every), after.windows["train"].batch(every), strict=True
    ):
        np.testing.assert_array_equal(mine, other)


def test_windows_are_standardised_with_the_training_rows():
    series_set = wide()
    data = build_forecast_data(CONFIG, series_set)
    train = series_set.series[0].values[:70]
    np.testing.assert_array_equal(data.train_values(0), train)
    np.testing.assert_allclose(data.scale_of_channels(), train.std(axis=0))
    _, target = data.windows["test"].batch([0])
    expected = (series_set.series[0].values[80:84] - train.mean(axis=0)) / train.std(axis=0)
    np.testing.assert_allclose(target[0], expected, rtol=1e-5)


def test_percent_keeps_the_oldest_windows_and_the_whole_scaler():
    whole = build_forecast_data(CONFIG, wide())
    few = build_forecast_data(replace(CONFIG, percent=20), wide())
    # Time-LLM: (training rows - seq_len) * percent // 100 + seq_len rows are left.
    assert len(few.windows["train"]) == (70 - 8) * 20 // 100 - 4 + 1
    assert few.windows["train"].locate(0) == (0, 0)
    np.testing.assert_array_equal(few.scalers[0].mean, whole.scalers[0].mean)
    assert len(few.windows["val"]) == len(whole.windows["val"])


def test_a_percent_that_leaves_no_window_is_refused():
    with pytest.raises(DataError, match=r"data.percent=1 leaves 8 training rows .*needs 12"):
        build_forecast_data(replace(CONFIG, percent=1), wide())


def test_strides_thin_out_training_and_selection_but_not_the_scores():
    data = build_forecast_data(replace(CONFIG, train_stride=5, val_stride=3), wide())
    assert [data.windows["train"].locate(i)[1] for i in range(3)] == [0, 5, 10]
    assert len(data.windows["val_selection"]) == 3
    assert (len(data.windows["val"]), len(data.windows["test"])) == (7, 17)


def test_channels_number_variates_and_series():
    data = build_forecast_data(CONFIG, wide())
    assert (data.num_channels, data.channel_names) == (2, ("a", "b"))
    np.testing.assert_array_equal(data.channels_of([3, 0], "val"), [[0, 1], [0, 1]])

    data = build_forecast_data(CONFIG, long(60, 50, 40))
    assert (data.num_channels, data.channel_names) == (3, ("s0", "s1", "s2"))
    first_of_s1 = num_windows(42, 8, 4, False)
    np.testing.assert_array_equal(
        data.channels_of([first_of_s1 - 1, first_of_s1], "train"), [[0], [1]]
    )
    assert data.scale_of_channels().shape == (3,)
    np.testing.assert_allclose(
        data.scale_of_channels(), [data.train_values(number).std() for number in range(3)]
    )


def test_several_series_of_several_variates_have_their_channels_side_by_side():
    pair = replace(wide(), series=(wide().series[0], replace(wide(seed=1).series[0], id="two")))
    data = build_forecast_data(CONFIG, pair)
    assert data.channel_names == ("own/a", "own/b", "two/a", "two/b")
    per_series = len(data.windows["val"]) // 2
    np.testing.assert_array_equal(data.channels_of([0, per_series], "val"), [[0, 1], [2, 3]])


def test_a_series_too_short_is_named_with_the_rows_it_needs():
    with pytest.raises(
        DataError, match=r"series 's1' has 30 rows, split into 21/3/6 .*others 4 each\): 31 rows"
    ):
        build_forecast_data(CONFIG, long(60, 30))
    build_forecast_data(CONFIG, long(60, 31))


def test_constant_columns_and_unused_rows_are_noted():
    data = build_forecast_data(CONFIG, replace(wide(c=1.0), borders=(60, 20, 15)))
    assert data.series_set.notes == (
        "column 'c' of series 'own' is constant in the training rows",
        "series 'own': the newest 5 rows belong to no split",
    )
    assert np.isfinite(data.windows["train"].batch([0])[0]).all()


def test_a_value_that_cannot_be_standardised_is_refused():
    tiny = np.full(100, 1e-30)
    tiny[::2] = 2e-30
    tiny[90] = 1e30
    with pytest.raises(DataError, match=r"column 'c' .*has 1e\+30 at row 91, too far"):
        build_forecast_data(CONFIG, wide(c=tiny))


@pytest.mark.parametrize(("most", "expected"), [(100, list(range(9))), (3, [0, 4, 8]), (1, [0])])
def test_a_sample_is_even_and_never_more_than_there_is(most: int, expected: list[int]):
    windows = WindowSet([np.zeros((20, 1), dtype=np.float32)], [(0, 20)], 8, 4)
    assert len(windows) == 9
    assert windows.even_sample(most).tolist() == expected


@settings(deadline=None, max_examples=40)
@given(
    shares=st.tuples(st.integers(1, 8), st.integers(1, 8), st.integers(1, 8)),
    seq_len=st.integers(1, 12),
    pred_len=st.integers(1, 6),
)
def test_the_rows_a_refusal_asks_for_are_the_fewest_that_do(
    shares: tuple[int, int, int], seq_len: int, pred_len: int
):
    config = DataConfig(seq_len=seq_len, pred_len=pred_len)
    total = sum(shares)
    splits = (shares[0] / total, shares[1] / total, shares[2] / total)

    def refusal(rows: int) -> str:
        try:
            build_forecast_data(config, replace(wide(rows), borders=splits))
        except DataError as error:
            return str(error)
        return ""

    counts = [int(n) for n in re.findall(r"(\d+) rows are needed", refusal(3))]
    if counts:
        assert refusal(counts[0]) == ""
        assert all(refusal(rows) for rows in range(3, counts[0]))
    else:
        assert refusal(3) == ""


@pytest.mark.parametrize(
    ("splits", "remedy"),
    [
        ((0.998, 0.001, 0.001), "[0-9]+ rows are needed"),
        ((0.5000004, 1e-7, 0.5), "raise the smallest of data.splits"),
    ],
)
def test_a_horizon_out_of_all_proportion_is_refused_in_a_moment(
    splits: tuple[float, float, float], remedy: str
):
    started = time.process_time()
    config = DataConfig(seq_len=8, pred_len=10**8)
    with pytest.raises(DataError, match=f"too short for data.seq_len=8 .*: .*{remedy}"):
        build_forecast_data(config, replace(wide(), borders=splits))
    assert time.process_time() - started < 1


def test_values_too_small_for_a_deviation_are_refused():
    series_set = wide(c=[0.0, 5e-324] * 50)
    with pytest.raises(DataError, match="column 'c' of series 'own' .*to be standardised"):
        build_forecast_data(CONFIG, series_set)


@pytest.mark.parametrize("most", [1, 7, 10**6])
def test_an_even_sample_may_be_of_some_series_alone(most: int):
    data = build_forecast_data(CONFIG, long(100, 180, 120))
    windows = data.windows["train"]
    series_of = np.array([windows.locate(number)[0] for number in range(len(windows))])
    own = np.flatnonzero(series_of == 1)
    sample = windows.even_sample(most, slice(1, 2))
    assert len(sample) == min(most, len(own))
    assert set(sample.tolist()) <= set(own.tolist())
    if most > 1:
        assert sample[[0, -1]].tolist() == own[[0, -1]].tolist()
    assert not len(windows.even_sample(most, slice(1, 1)))


@pytest.mark.parametrize(("most", "chosen"), [(1, [0]), (2, [0, 3]), (3, [0, 1, 3]), (9, range(4))])
def test_model_selection_may_score_some_series_alone(most: int, chosen: Sequence[int]):
    some = build_forecast_data(
        replace(CONFIG, val_series=most, val_stride=2), long(100, 180, 90, 120)
    )
    every = build_forecast_data(replace(CONFIG, val_stride=2), long(100, 180, 90, 120))
    windows = some.windows["val_selection"]
    places = [windows.locate(number) for number in range(len(windows))]
    all_windows = every.windows["val_selection"]
    all_places = [all_windows.locate(number) for number in range(len(all_windows))]
    assert places == [place for place in all_places if place[0] in chosen]
    for split in ("train", "val", "test"):
        assert len(some.windows[split]) == len(every.windows[split])


def test_a_source_with_a_shorter_horizon_has_more_windows_and_shorter_targets():
    dates = pd.date_range("2020", periods=100, freq="h").to_numpy()
    values = np.random.default_rng(0).normal(size=(2, 100))
    parts = [[(dates, one)] for one in values]
    data = data_of_sources(
        [source_of("long", parts[0]), source_of("short", parts[1], pred_len=2)], 8, 4
    )
    windows = data.windows["train"]
    assert (windows.pred_len, windows.horizon_of(0), windows.horizon_of(1)) == (4, 4, 2)
    assert [windows.ids_of(part) for part in data.series_of_sources] == [
        slice(0, 70 - 11), slice(70 - 11, 70 - 11 + 70 - 9),
    ]  # fmt: skip
    first = 70 - 11
    contexts, targets = windows.batch([0, first, len(windows) - 1])
    assert np.isfinite(contexts).all()
    assert np.isnan(targets[:, :, 0]).tolist() == [[False] * 4, *[[False, False, True, True]] * 2]
    np.testing.assert_array_equal(targets[1, :2], windows.values[1][8:10])
    np.testing.assert_array_equal(targets[2, :2], windows.values[1][68:70])
    alone = data.only(1)
    assert (alone.windows["val"].pred_len, alone.pred_len) == (2, 4)
    assert alone.windows["train"].batch([0])[1].shape == (1, 2, 1)
    # What an entry is followed by has all steps, whatever is forecast of its source.
    assert data.only(0).num_entries(1) == alone.num_entries(1) == 70 - 11


def test_a_series_may_have_windows_of_its_horizon_and_no_entry():
    dates = pd.date_range("2020", periods=100, freq="h").to_numpy()
    long = source_of("long", [(dates, np.arange(100.0))])
    short = source_of("short", [(dates[:20], np.arange(20.0))], pred_len=2)
    data = data_of_sources([long, short], 8, 8)
    assert len(data.only(1).windows["train"]) == 14 - 9
    assert data.memory_rows[1] == (0, 0)
    assert data.only(1).num_entries(1) == 0


def test_a_share_without_an_entry_is_an_error_where_the_whole_has_one_and_else_a_note():
    dates = pd.date_range("2020", periods=100, freq="h").to_numpy()
    long = source_of("long", [(dates, np.arange(100.0))])
    few = source_of("few", [(dates, np.arange(100.0))], pred_len=2, memory_percent=1)
    with pytest.raises(DataError, match=r"memory_percent=1 leaves 8 training rows .* needs 12"):
        data_of_sources([long, few], 8, 4)
    tiny = source_of("tiny", [(dates[:20], np.arange(20.0))], pred_len=2)
    notes = data_of_sources([long, tiny], 8, 8).series_set.notes
    assert notes == (
        "tiny: 1 of 1 series have training windows and no entry in a memory, which takes "
        "data.seq_len + data.pred_len = 16 training rows",
    )
