"""dist_train/retrieval.py: what is found equals a slow loop, before, while and after keys change.

That it never holds the answer is tested in test_retrieval_leaks.py.
"""

import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from dist_train.data.clock import clock_offsets
from dist_train.data.collate import Collator
from dist_train.data.config import DataError
from dist_train.data.windows import ForecastData, WindowSet
from dist_train.memory_build import LiveMemory, MemoryBuilder
from dist_train.retrieval import Neighbours, Retriever
from memory_index.config import BankConfig
from model.config import GramConfig
from model.pattern_encoder import build_encoder, fingerprint
from tests.helpers.forecast_data import long_data, wide_data

L, H, SPAN = 40, 8, 48
KEYS = ("dual", "anchored")
SPLITS = ("train", "val", "test")


def gram(key: str = "anchored", **options: object) -> GramConfig:
    return GramConfig(use_gram=True, retrieval_key=key, d_repr=8, **options)  # type: ignore[arg-type]


def noise(rows: int, variates: int = 2, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, variates)).cumsum(axis=0)


def fresh_state(key: str, seq_len: int = L) -> dict[str, torch.Tensor]:
    """State of an encoder that has not been trained."""
    torch.manual_seed(0)
    return build_encoder(gram(key), seq_len).state_dict()


def make(
    data: ForecastData, key: str = "anchored", bank: BankConfig | None = None, **options: object
) -> Retriever:
    retriever = Retriever(data, gram(key, **options), bank or BankConfig())
    retriever.refresh(fresh_state(key))
    return retriever


def some(windows: WindowSet, count: int = 9) -> list[int]:
    """Numbers of a few windows, first and last among them."""
    return np.unique(np.linspace(0, len(windows) - 1, count).astype(int)).tolist()


def first_hour(data: ForecastData, series: int) -> int:
    start = min(one.dates[0] for one in data.series_set.series)
    return int((data.series_set.series[series].dates[0] - start) / np.timedelta64(1, "h"))


def search_by_loop(
    retriever: Retriever, window_id: int, variate: int, split: str
) -> list[tuple[float, int]]:
    """SPEC's rule in hours, entry by entry: (distance, id), nearest first."""
    data = retriever.data
    series, start = data.windows[split].locate(window_id)
    begin = first_hour(data, series) + start
    query = data.windows[split].context(window_id)[:, variate]
    entries, windows = [], [query]
    channels = sum(values.shape[1] for values in data.windows["train"].values)
    channel = 0
    for number, values in enumerate(data.windows["train"].values):
        first, end = data.windows["train"].ranges[number]
        for entry_start in range(first, end - SPAN + 1):
            entry_begin = first_hour(data, number) + entry_start
            entry, own = (
                set(range(entry_begin, entry_begin + SPAN)),
                set(range(begin, begin + SPAN)),
            )
            if entry & own or (split != "train" and max(entry) >= begin + L):
                continue
            for column in range(values.shape[1]):
                windows.append(values[entry_start : entry_start + L, column])
                # Ids are time-major: the hour on the clock of all series, then the channel.
                entries.append(entry_begin * channels + channel + column)
        channel += values.shape[1]
    keys = retriever.encoder(torch.from_numpy(np.stack(windows))).key.double()
    distances = (keys[1:] - keys[0]).square().sum(dim=1).tolist()
    return sorted(zip(distances, entries, strict=True))[: retriever.gram.top_k]


DATA_SETS = {
    "wide": wide_data(noise(300), L, H),
    # The third series trains on hours that the others are validated and tested on.
    "long": long_data(
        [(first, noise(rows, 1, rows)[:, 0]) for first, rows in ((0, 200), (70, 130), (3, 420))],
        L,
        H,
    ),
}


@pytest.mark.parametrize("name", DATA_SETS)
@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("split", SPLITS)
def test_what_is_found_equals_a_slow_loop(name: str, key: str, split: str):
    data = DATA_SETS[name]
    retriever = make(data, key, top_k=4)
    windows = data.windows[split]
    batch = Collator(windows, None)(some(windows, 4))
    neighbours = retriever.search_batch(batch, split)
    row = 0
    for window_id in batch.window_ids.tolist():
        for variate in range(windows.num_variates):
            expected = search_by_loop(retriever, window_id, variate, split)
            ids = [found for found in neighbours.ids[row].tolist() if found >= 0]
            assert sorted(ids) == sorted(number for _, number in expected)
            distances = np.array([distance for distance, _ in expected])
            weights = np.exp(-(distances - distances.min(initial=0)) / retriever.gram.temperature)
            weights /= max(weights.sum(), 1e-30)
            # Nearly equal distances may swap their places, with equal weights.
            got = neighbours.weights[row].numpy()
            np.testing.assert_allclose(got[: len(ids)], weights, atol=1e-4)
            assert not got[len(ids) :].any()
            told = neighbours.distances[row].numpy()
            np.testing.assert_allclose(told[: len(ids)], distances, rtol=1e-4, atol=1e-4)
            assert not told[len(ids) :].any()
            row += 1


def test_series_that_overlap_without_a_common_clock_are_refused():
    data = long_data([(0, noise(300, 1)[:, 0]), (30, noise(300, 1)[:, 0])], L, H)
    assert clock_offsets(data.series_set).tolist() == [0, 30]
    series = data.series_set.series
    between = replace(series[1], dates=series[1].dates + np.timedelta64(30, "m"))
    for other in (
        replace(data.series_set, frequency=None),
        replace(data.series_set, series=(series[0], between)),
        replace(data.series_set, series=series[:1]),
    ):
        assert clock_offsets(other) is None
    with pytest.raises(DataError, match=r"'s0' and 's1' overlap in time but share no regular"):
        make(replace(data, series_set=replace(data.series_set, frequency=None)))


def test_irregular_series_one_after_the_other_follow_on_one_clock():
    data = long_data([(0, noise(300, 1)[:, 0]), (300, noise(300, 1)[:, 0])], L, H)
    apart = make(replace(data, series_set=replace(data.series_set, frequency=None)))
    clocks_R, rows_R = apart.bank.on_clock(torch.tensor([0, 1]), torch.tensor([7, 7]))
    assert (clocks_R.tolist(), rows_R.tolist()) == ([0, 0], [7, 307])


@pytest.mark.parametrize("key", KEYS)
def test_few_entries_or_none_leave_empty_slots(key: str):
    data = DATA_SETS["wide"]
    retriever = make(data, key, BankConfig(num_samples=3))
    batch = Collator(data.windows["val"], None)([0])
    neighbours = retriever.search_batch(batch, "val")
    assert (neighbours.ids >= 0).sum(dim=1).tolist() == [3, 3]
    torch.testing.assert_close(neighbours.weights.sum(dim=1), torch.ones(2))
    # A window in the middle of a short training split overlaps all of it.
    lonely = wide_data(noise(120), L, H)
    retriever = make(lonely, key)
    batch = Collator(lonely.windows["train"], None)([18])
    neighbours = retriever.search_batch(batch, "train")
    assert (neighbours.ids == -1).all()
    assert not neighbours.weights.any()
    retrieved = retriever.fetch(neighbours)
    assert not retrieved.valid.any()
    assert not retrieved.futures.any()
    last = batch.context[:, -1:].expand(-1, H, -1)
    torch.testing.assert_close(retriever.forecast(batch, "train"), last)


@pytest.mark.parametrize("key", KEYS)
def test_windows_without_variance_find_neighbours_with_finite_futures(key: str):
    values = noise(300)
    values[:, 0] = 3.0
    values[40:180, 1] = values[40, 1]
    data = wide_data(values, L, H)
    retriever = make(data, key)
    for split in SPLITS:
        batch = Collator(data.windows[split], None)(some(data.windows[split]))
        retrieved = retriever.retrieve(batch, split)
        assert retrieved.futures.isfinite().all()
        assert retriever.forecast(batch, split).isfinite().all()


@pytest.mark.parametrize("key", KEYS)
def test_the_forecast_is_the_weighted_mean_of_what_is_fetched(key: str):
    data = DATA_SETS["wide"]
    retriever = make(data, key)
    batch = Collator(data.windows["test"], None)([2, 5])
    found = retriever.search_batch(batch, "test")
    values = data.windows["train"].values[0]
    forecast = retriever.forecast(batch, "test").numpy()
    for window in range(2):
        for variate in range(2):
            own = batch.context[window, :, variate].numpy().astype(np.float64)
            level = own[-1] if key == "anchored" else own.mean()
            expected = np.zeros(H)
            row = window * 2 + variate
            for number, weight in zip(found.ids[row], found.weights[row], strict=True):
                start, column = divmod(int(number), 2)
                entry = values[start : start + SPAN, column].astype(np.float64)
                base = entry[L - 1] if key == "anchored" else entry[:L].mean()
                scale = np.sqrt(entry[:L].var() + 1e-5)
                expected += float(weight) * (entry[L:] - base) / scale
            expected = level + np.sqrt(own.var() + 1e-5) * expected
            np.testing.assert_allclose(forecast[window, :, variate], expected, rtol=1e-4, atol=1e-4)


def test_a_refresh_brings_new_keys_and_another_fingerprint_only_for_another_encoder():
    retriever = make(DATA_SETS["wide"], "dual")
    batch = Collator(DATA_SETS["wide"].windows["val"], None)(some(DATA_SETS["wide"].windows["val"]))
    before, old = retriever.search_batch(batch, "val"), retriever.fingerprint
    state = retriever.snapshot()
    retriever.refresh(state)
    assert retriever.fingerprint == old == fingerprint(retriever.encoder)
    assert torch.equal(retriever.search_batch(batch, "val").ids, before.ids)

    moved = {name: value + 0.3 * torch.randn_like(value) for name, value in state.items()}
    retriever.refresh(moved)
    assert retriever.fingerprint != old
    after = retriever.search_batch(batch, "val")
    assert not torch.equal(after.ids, before.ids)
    # The snapshot is a copy: what happens to the encoder later does not reach it.
    assert all(not torch.equal(value, moved[name]) for name, value in state.items())
    fresh = make(DATA_SETS["wide"], "dual")
    fresh.refresh(moved)
    assert torch.equal(fresh.search_batch(batch, "val").ids, after.ids)


def moved(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Another state of the encoder, far enough away to find other neighbours."""
    torch.manual_seed(1)
    return {name: value + 0.3 * torch.randn_like(value) for name, value in state.items()}


def test_searches_go_on_in_the_old_keys_until_the_new_ones_are_taken_over(
    monkeypatch: pytest.MonkeyPatch,
):
    data, gate = DATA_SETS["wide"], threading.Event()
    retriever, fresh = make(data, "dual"), make(data, "dual")
    batch = Collator(data.windows["val"], None)(some(data.windows["val"]))
    before, old = retriever.search_batch(batch, "val"), retriever.fingerprint
    state = moved(retriever.snapshot())
    fresh.refresh(state)
    after = fresh.search_batch(batch, "val")
    build = MemoryBuilder.open

    def held(builder: MemoryBuilder, given: dict[str, torch.Tensor]) -> LiveMemory:
        assert gate.wait(timeout=60)
        return build(builder, given)

    monkeypatch.setattr(MemoryBuilder, "open", held)
    for swap in (False, True):
        gate.clear()
        given = {name: value.clone() for name, value in state.items()}
        retriever.start_refresh(given)
        for value in given.values():
            value += 1.0  # training goes on meanwhile: the keys are of the state that was given
        assert torch.equal(retriever.search_batch(batch, "val").ids, before.ids)
        gate.set()
        assert retriever.fingerprint == old
        retriever.finish_refresh(swap=swap)
        assert (retriever.fingerprint == fresh.fingerprint) is swap
        found = retriever.search_batch(batch, "val")
        assert torch.equal(found.ids, (after if swap else before).ids)
    retriever.finish_refresh()  # nothing was begun
    assert retriever.fingerprint == fresh.fingerprint


def test_a_build_that_fails_in_the_background_is_told_when_its_keys_are_due(
    monkeypatch: pytest.MonkeyPatch,
):
    retriever = make(DATA_SETS["wide"], "dual")
    monkeypatch.setattr(MemoryBuilder, "open", lambda builder, state: 1 / 0)
    retriever.start_refresh(retriever.snapshot())
    batch = Collator(DATA_SETS["wide"].windows["val"], None)([0])
    assert (retriever.search_batch(batch, "val").ids >= 0).all()
    with pytest.raises(ZeroDivisionError):
        retriever.finish_refresh()


def test_searching_ahead_finds_and_reads_the_same_in_the_order_of_asking(
    monkeypatch: pytest.MonkeyPatch,
):
    data, asked = DATA_SETS["long"], []
    retriever = make(data, "dual")
    batches = [
        (split, Collator(data.windows[split], None)(some(data.windows[split], count)))
        for count, split in ((9, "train"), (1, "val"), (5, "test"))
    ]
    expected = [retriever.fetch(retriever.search_batch(batch, split)) for split, batch in batches]
    search = Retriever._search

    def watched(self: Retriever, context: torch.Tensor, *args: Any, **options: Any) -> Neighbours:
        asked.append(len(context))
        return search(self, context, *args, **options)

    monkeypatch.setattr(Retriever, "_search", watched)
    futures = [retriever.retrieve_ahead(batch, split) for split, batch in batches]
    # One that is waited for comes after those that were asked for before.
    now = retriever.retrieve(batches[1][1], "val")
    assert all(future.done() for future in futures)
    assert asked == [len(batch.window_ids) for _, batch in batches] + [asked[1]]
    for found, wanted in zip([future.result() for future in futures], expected, strict=True):
        for one, other in zip(found, wanted, strict=True):
            assert torch.equal(one, other)
    assert torch.equal(now.ids, expected[1].ids)
    retriever.close()


def test_only_learned_keys_grow_stale():
    assert make(DATA_SETS["wide"], "dual").needs_refresh
    anchored = make(DATA_SETS["wide"], "anchored")
    assert not anchored.needs_refresh
    assert anchored.snapshot() == {}


def test_the_shape_weight_is_that_of_the_keys_that_are_searched():
    assert make(DATA_SETS["wide"], "anchored").shape_weight is None
    retriever = make(DATA_SETS["wide"], "dual")
    assert retriever.shape_weight == 0.5
    state = fresh_state("dual") | {"dual_key.shape_weight": torch.tensor([1.0])}
    retriever.start_refresh(state)
    assert retriever.shape_weight == 0.5
    retriever.finish_refresh()
    assert retriever.shape_weight == pytest.approx(1 / (1 + np.exp(-1)))
    retriever.close()


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("split", SPLITS)
def test_random_neighbours_are_visible_ones_weighed_by_the_same_distance(key: str, split: str):
    data = DATA_SETS["wide"]
    retriever = make(data, key, top_k=6, neighbours="random")
    everything = make(data, key, top_k=len(retriever.bank))
    batch = Collator(data.windows[split], None)(some(data.windows[split], 4))
    drawn, all_of_them = retriever.search_batch(batch, split), everything.search_batch(batch, split)
    for row, (ids, weights) in enumerate(zip(drawn.ids, drawn.weights, strict=True)):
        seen = {
            number: weight
            for number, weight in zip(
                all_of_them.ids[row].tolist(), all_of_them.weights[row].tolist(), strict=True
            )
            if number >= 0
        }
        assert set(ids.tolist()) <= seen.keys()
        expected = torch.tensor([seen[number] for number in ids.tolist()])
        torch.testing.assert_close(weights, expected / expected.sum(), rtol=1e-3, atol=1e-5)
    assert not torch.equal(drawn.ids, all_of_them.ids[:, :6])
