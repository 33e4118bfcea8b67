"""dist_train/retrieval.py: what is found equals a slow loop, and never holds the answer."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_train.data.clock import clock_offsets
from dist_train.data.collate import Collator
from dist_train.data.config import DataError
from dist_train.data.windows import ForecastData, WindowSet
from dist_train.retrieval import Neighbours, Retriever
from memory_index.config import BankConfig
from memory_index.exclusion import Exclusion
from model.config import GramConfig
from model.pattern_encoder import build_encoder, fingerprint
from tests.helpers.forecast_data import long_data, wide_data
from tests.helpers.ranks import run_ranks

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
    found = []
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
                window = values[entry_start : entry_start + L, column]
                pair = torch.from_numpy(np.stack([query, window]))
                keys = retriever.encoder(pair).key.double()
                distance = float((keys[0] - keys[1]).square().sum())
                # Ids are time-major: the hour on the clock of all series, then the channel.
                found.append((distance, entry_begin * channels + channel + column))
        channel += values.shape[1]
    return sorted(found)[: retriever.gram.top_k]


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
            row += 1


def query_and_plant(
    split: str, choice: float, shift: int, columns: tuple[int, int], key: str
) -> tuple[int, bool]:
    """Copy a query and its future ``shift`` rows away into another variate, and search.

    Returns:
        How often the copy was retrieved, and whether it is an entry at all.
    """
    values = noise(300, 3, seed=5)
    data = wide_data(values, L, H)
    windows = data.windows[split]
    window_id = int(choice * (len(windows) - 1))
    _, start = windows.locate(window_id)
    source, column = columns
    place = start + shift
    _, end = data.windows["train"].ranges[0]
    if not 0 <= place <= end - SPAN:
        return 0, False
    array = data.windows["train"].values[0]
    array[place : place + SPAN, column] = array[start : start + SPAN, source].copy()
    retriever = make(data, key)
    batch = Collator(windows, None)([window_id])
    ids = retriever.search_batch(batch, split).ids[source]
    return int((ids == place * 3 + column).sum()), True


@settings(deadline=None, max_examples=40)
@given(
    split=st.sampled_from(SPLITS),
    choice=st.floats(0, 1),
    shift=st.one_of(st.sampled_from([1 - SPAN, -L, 0, SPAN - 1]), st.integers(1 - SPAN, SPAN - 1)),
    columns=st.permutations(range(3)).map(lambda order: (order[0], order[1])),
    key=st.sampled_from(KEYS),
)
def test_a_copy_of_the_query_and_its_future_that_overlaps_it_is_never_retrieved(
    split: str, choice: float, shift: int, columns: tuple[int, int], key: str
):
    # Validation and test queries begin beside the training rows: their copies lie before them.
    shift = shift if split == "train" else -abs(shift)
    hits, _ = query_and_plant(split, choice, shift, columns, key)
    assert hits == 0


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize(
    ("split", "choice"), [("train", 0.5), ("val", 0.0), ("test", 0.0)], ids=SPLITS
)
def test_the_copy_is_hidden_up_to_the_last_shared_step_and_found_beyond(
    split: str, choice: float, key: str
):
    seen = {
        shift: query_and_plant(split, choice, shift, (0, 1), key)
        for shift in (-SPAN, 1 - SPAN, SPAN - 1, SPAN)
    }
    assert seen[-SPAN] == (1, True)
    assert seen[1 - SPAN] == (0, True)
    if split == "train":
        assert seen[SPAN - 1] == (0, True)
        assert seen[SPAN] == (1, True)


def test_a_copy_in_another_series_at_the_same_hours_is_never_retrieved():
    values = [noise(300, 1, seed=number)[:, 0] for number in range(2)]
    for shift, hits in ((-SPAN, 1), (1 - SPAN, 0), (0, 0), (SPAN - 1, 0), (SPAN, 1)):
        data = long_data([(0, values[0].copy()), (30, values[1].copy())], L, H)
        first, second = data.windows["train"].values
        place = 80 + shift - 30  # in rows of the second series, which begins 30 hours later
        second[place : place + SPAN] = first[80 : 80 + SPAN]
        batch = Collator(data.windows["train"], None)([80])
        ids = make(data).search_batch(batch, "train").ids
        assert int((ids == (30 + place) * 2 + 1).sum()) == hits, shift


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


def test_series_one_after_the_other_need_no_clock():
    data = long_data([(0, noise(300, 1)[:, 0]), (300, noise(300, 1)[:, 0])], L, H)
    apart = make(replace(data, series_set=replace(data.series_set, frequency=None)))
    clocks_R, rows_R = apart.bank.on_clock(torch.tensor([0, 1]), torch.tensor([7, 7]))
    assert (clocks_R.tolist(), rows_R.tolist()) == ([0, 1], [7, 7])


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


def test_only_learned_keys_grow_stale():
    assert make(DATA_SETS["wide"], "dual").needs_refresh
    anchored = make(DATA_SETS["wide"], "anchored")
    assert not anchored.needs_refresh
    assert anchored.snapshot() == {}


def search_on_ranks(rank: int, world_size: int, out: Path) -> None:
    data = wide_data(noise(300), L, H)
    retriever = make(data, "dual")
    found: dict[str, object] = {"fingerprint": retriever.fingerprint}
    for split in SPLITS:
        batch = Collator(data.windows[split], None)(some(data.windows[split]))
        neighbours: Neighbours = retriever.search_batch(batch, split)
        found |= {f"{split}-ids": neighbours.ids, f"{split}-weights": neighbours.weights}
    torch.save(found, out / f"{world_size}-{rank}.pt")


@pytest.mark.ranks
def test_every_rank_has_the_same_keys_and_finds_what_one_rank_finds(tmp_path: Path):
    for world_size in (1, 2):
        run_ranks(search_on_ranks, world_size, tmp_path)
    one, first, second = (torch.load(tmp_path / f"{name}.pt") for name in ("1-0", "2-0", "2-1"))
    assert first["fingerprint"] == second["fingerprint"] == one["fingerprint"]
    for split in SPLITS:
        ids = f"{split}-ids"
        assert torch.equal(one[ids], first[ids])
        assert torch.equal(one[ids], second[ids])


def test_a_loosened_exclusion_would_be_noticed(monkeypatch: pytest.MonkeyPatch):
    """The leak tests above are only worth something if this copy is found."""
    loose = Exclusion(seq_len=L - 1, pred_len=H, past_only=False)
    monkeypatch.setattr(Retriever, "exclusion", lambda self, *, past_only: loose)
    assert query_and_plant("train", 0.5, 1 - SPAN, (0, 1), "anchored") == (1, True)
