"""dist_train/retrieval.py: whatever the index, a query never finds its own answer.

The query and its future are copied to other places. A copy is the best match there can be: within
reach of the query it must never be found, one step beyond it must be.
"""

from collections.abc import Iterator
from contextlib import closing
from typing import Literal, get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_train.data.collate import Collator
from dist_train.data.windows import ForecastData
from dist_train.retrieval import Retriever
from memory_index import placement
from memory_index.config import BankConfig, IndexKind
from memory_index.exclusion import Exclusion
from model.config import GramConfig
from model.pattern_encoder import build_encoder
from tests.helpers.forecast_data import long_data, wide_data

L, H, SPAN = 40, 8, 48
SHIFTS = (-SPAN, 1 - SPAN, SPAN - 1, SPAN)  # of the copies; the two outer ones may be found
KINDS: tuple[IndexKind, ...] = get_args(IndexKind)
KEYS = ("dual", "anchored")
SPLITS = ("train", "val", "test")

Key = Literal["dual", "anchored"]


@pytest.fixture(autouse=True)
def several_chunks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A small bank in many chunks, as a large one is; its small searches on one thread."""
    monkeypatch.setattr(placement, "SMALLEST_CHUNK", 64)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def noise(rows: int, variates: int, seed: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, variates)).cumsum(axis=0)


def loosen(patch: pytest.MonkeyPatch) -> None:
    """Let queries see one row more than they may."""
    loose = Exclusion(seq_len=L - 1, pred_len=H, past_only=False)
    patch.setattr(Retriever, "exclusion", lambda self, *, past_only: loose)


def find(data: ForecastData, split: str, window_id: int, key: Key, index: IndexKind) -> list[int]:
    """Ids that the first variate of one window finds."""
    gram = GramConfig(use_gram=True, retrieval_key=key, d_repr=8)
    torch.manual_seed(0)
    with closing(Retriever(data, gram, BankConfig(index=index))) as retriever:
        retriever.refresh(build_encoder(gram, L).state_dict())
        assert retriever.live.choice.kind == index
        batch = Collator(data.windows[split], None)([window_id])
        return [int(number) for number in retriever.search_batch(batch, split).ids[0]]


def copy_and_find(
    split: str, choice: float, shifts: tuple[int, ...], key: Key, index: IndexKind
) -> dict[int, bool]:
    """Copy a query and its future, each shift into a variate of its own, and search.

    Returns:
        Whether each copy was found, by its shift; only those that are entries.
    """
    data = wide_data(noise(300, 1 + len(shifts)), L, H)
    window_id = int(choice * (len(data.windows[split]) - 1))
    _, start = data.windows[split].locate(window_id)
    _, end = data.windows["train"].ranges[0]
    array = data.windows["train"].values[0]
    planted = {}
    for column, shift in enumerate(shifts, 1):
        place = start + shift
        if 0 <= place <= end - SPAN:
            array[place : place + SPAN, column] = array[start : start + SPAN, 0]
            planted[shift] = place * array.shape[1] + column  # ids are time-major
    found = find(data, split, window_id, key, index) if planted else []
    return {shift: number in found for shift, number in planted.items()}


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("index", KINDS)
def test_copies_are_hidden_up_to_the_last_shared_step_and_found_beyond(index: IndexKind, key: Key):
    assert copy_and_find("train", 0.5, SHIFTS, key, index) == dict(
        zip(SHIFTS, (True, False, False, True), strict=True)
    )
    # The first windows of validation and test; what lies later is not in the memory.
    for split in ("val", "test"):
        seen = copy_and_find(split, 0.0, SHIFTS, key, index)
        assert seen == dict(zip(SHIFTS[:2], (True, False), strict=True)), split


@settings(deadline=None, max_examples=40)
@given(
    split=st.sampled_from(SPLITS),
    choice=st.floats(0, 1),
    shift=st.one_of(st.sampled_from([1 - SPAN, -L, 0, SPAN - 1]), st.integers(1 - SPAN, SPAN - 1)),
    key=st.sampled_from(KEYS),
    index=st.sampled_from(KINDS),
)
def test_a_copy_of_the_query_and_its_future_that_overlaps_it_is_never_retrieved(
    split: str, choice: float, shift: int, key: Key, index: IndexKind
):
    # Validation and test queries begin beside the training rows: their copies lie before them.
    shift = shift if split == "train" else -abs(shift)
    assert not any(copy_and_find(split, choice, (shift, shift), key, index).values())


@pytest.mark.parametrize("index", KINDS)
def test_a_copy_in_another_series_at_the_same_hours_is_never_retrieved(index: IndexKind):
    # The query is the window at hour 100 of the first series; the others begin later, and each
    # holds one copy.
    begins, hour = (0, 30, 31, 7, 20), 100
    parts = [noise(300, 1, seed=number)[:, 0] for number in range(len(begins))]
    data = long_data(list(zip(begins, parts, strict=True)), L, H)
    own, *others = data.windows["train"].values
    planted = {}
    for channel, (values, begin, shift) in enumerate(
        zip(others, begins[1:], SHIFTS, strict=True), 1
    ):
        place = hour + shift - begin
        values[place : place + SPAN] = own[hour : hour + SPAN]
        planted[shift] = (hour + shift) * len(begins) + channel
    found = find(data, "train", hour, "anchored", index)
    assert {shift: number in found for shift, number in planted.items()} == dict(
        zip(SHIFTS, (True, False, False, True), strict=True)
    )


def entries_that_overlap(retriever: Retriever, split: str) -> int:
    """Search for every window of a split; how many results a comparison of hours refuses."""
    windows = retriever.data.windows[split]
    batch = Collator(windows, None)(list(range(len(windows))))
    ids = retriever.search_batch(batch, split).ids.numpy()
    assert (ids >= 0).any()
    firsts = np.repeat([windows.locate(number)[1] for number in range(len(windows))], 2)[:, None]
    entries = ids // 2  # two variates
    refused = np.abs(entries - firsts) < SPAN
    if split != "train":
        refused |= entries + SPAN > firsts + L
    return int((refused & (ids >= 0)).sum())


@pytest.mark.parametrize("index", KINDS)
def test_no_window_at_all_finds_an_entry_of_its_own_time(
    index: IndexKind, monkeypatch: pytest.MonkeyPatch
):
    # A cycle of 47 rows: the best matches overlap the query by their last row, or their first.
    cycle = np.sin(2 * np.pi * np.arange(320)[:, None] / (SPAN - 1) + np.arange(2))
    data = wide_data(cycle + 1e-3 * noise(320, 2), L, H)
    gram = GramConfig(use_gram=True, retrieval_key="anchored", d_repr=8)
    with closing(Retriever(data, gram, BankConfig(index=index))) as retriever:
        retriever.refresh({})
        assert [entries_that_overlap(retriever, split) for split in SPLITS] == [0, 0, 0]
        # This count is only worth something if it notices an exclusion that is a row too short.
        loosen(monkeypatch)
        assert all(entries_that_overlap(retriever, split) > 0 for split in SPLITS)


@pytest.mark.parametrize("index", KINDS)
def test_a_loosened_exclusion_would_be_noticed(index: IndexKind, monkeypatch: pytest.MonkeyPatch):
    """The copies above are only worth something if these are found."""
    loosen(monkeypatch)
    assert copy_and_find("train", 0.5, SHIFTS[1:3], "anchored", index) == {
        1 - SPAN: True,
        SPAN - 1: True,
    }
