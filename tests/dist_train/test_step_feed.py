"""dist_train/step_feed.py: the batches of each step, also from the middle of an epoch on."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_train import step_feed
from dist_train.data.sampler import GlobalBatchSampler
from dist_train.profiler import NoProfiler
from dist_train.step_feed import RefreshSchedule, micro_batches, with_neighbours
from model.config import GramConfig

WINDOWS, BATCH, EPOCHS = 25, 8, 3


@pytest.fixture(autouse=True)
def _numbers_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch is the list of its windows' numbers."""
    monkeypatch.setattr(step_feed, "make_loader", lambda windows, sampler, *given: iter(sampler))


def steps_from(first_step: int, micro: int, rank: int, ranks: int) -> list[list[list[int]]]:
    sampler = GlobalBatchSampler(WINDOWS, BATCH, micro, rank, ranks, 7)
    nothing: Any = None
    fed: Iterator[Any] = micro_batches(
        nothing, sampler, None, num_workers=0, max_epochs=EPOCHS, first_step=first_step,
        profiler=NoProfiler(),
    )  # fmt: skip
    return [[list(batch) for batch in batches] for batches in fed]


@pytest.mark.parametrize(("ranks", "micro"), [(1, 8), (1, 2), (2, 4), (2, 1), (4, 2)])
def test_a_run_that_goes_on_is_fed_what_the_whole_one_is(ranks: int, micro: int):
    for rank in range(ranks):
        whole = steps_from(0, micro, rank, ranks)
        assert len(whole) == EPOCHS * (WINDOWS // BATCH)
        assert {len(batches) for batches in whole} == {BATCH // ranks // micro}
        for first in range(len(whole) + 1):
            assert steps_from(first, micro, rank, ranks) == whole[first:]


def test_the_ranks_of_another_job_are_fed_the_same_global_batches():
    def global_batches(ranks: int, micro: int) -> list[set[int]]:
        fed = [steps_from(2, micro, rank, ranks) for rank in range(ranks)]
        return [{n for part in parts for b in part for n in b} for parts in zip(*fed, strict=True)]

    assert global_batches(1, 8) == global_batches(2, 2) == global_batches(4, 1)


@given(every=st.integers(1, 9), lag=st.none() | st.integers(0, 9))
def test_keys_are_begun_each_interval_and_searched_a_lag_later(every: int, lag: int | None):
    schedule = RefreshSchedule(
        GramConfig(refresh_every=every, refresh_lag=None if lag is None else min(lag, every - 1)),
        5,
        enabled=True,
    )
    begun = [step for step in range(40) if schedule.begins_after(step)]
    assert begun == list(range(every, 40, every))
    assert 0 <= schedule.lag < every
    swapped = [step for step in range(60) if schedule.swaps_after(step)]
    assert swapped[: len(begun)] == [step + schedule.lag for step in begun]


def test_without_an_interval_keys_are_begun_once_an_epoch():
    schedule = RefreshSchedule(GramConfig(), 5, enabled=True)
    assert [step for step in range(16) if schedule.begins_after(step)] == [5, 10, 15]
    off = RefreshSchedule(GramConfig(), 5, enabled=False)
    never = RefreshSchedule(GramConfig(refresh_every="never"), 5, enabled=True)
    for schedule in (off, never):
        assert not any(
            schedule.begins_after(step) or schedule.swaps_after(step) for step in range(40)
        )


class Questions:
    """Stands in for a Retriever: remembers what it was asked, and when."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    def retrieve_ahead(self, batch: int, split: str) -> SimpleNamespace:
        self.events.append(("ask", batch))
        return SimpleNamespace(answer=batch)


@settings(deadline=None)
@given(
    first=st.integers(0, 6), total=st.integers(1, 6), swaps=st.sets(st.integers(0, 12))
)  # fmt: skip
def test_each_step_gets_its_own_neighbours_and_none_is_asked_in_vain(
    first: int, total: int, swaps: set[int]
):
    questions: Any = Questions()
    steps: Any = ([10 * step, 10 * step + 1] for step in range(first, first + total + 2))
    done = []
    for batches, futures in with_neighbours(
        steps, questions, swaps.__contains__, first_step=first, total_steps=first + total
    ):
        assert [future.answer for future in futures] == batches
        questions.events.append("step")
        done.append(batches[0] // 10)
        if len(done) == total:
            break
    assert done == list(range(first, first + total))
    asked = [event[1] for event in questions.events if event != "step"]
    assert asked == [10 * step + number for step in done for number in (0, 1)]


def test_without_a_memory_steps_are_passed_on():
    steps: Any = iter([[1], [2]])
    fed = with_neighbours(steps, None, lambda step: True, first_step=0, total_steps=9)
    assert list(fed) == [([1], None), ([2], None)]
