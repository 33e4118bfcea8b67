"""dist_train/trainer.py: which keys a step searches, and when. A rehearsal, without arithmetic."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st
from tqdm import tqdm

from dist_train.config import CheckpointConfig, RunConfig, TrainConfig
from dist_train.trainer import Trainer
from model.config import GramConfig

MICRO_BATCHES = 2


@dataclass
class Memory:
    """Stands in for a Retriever: its keys are the number of steps that their encoder has had."""

    needs_refresh: bool = True
    live: int = 0
    begun: int | None = None
    search_s: float = 0.0
    events: list[tuple[Any, ...]] = field(default_factory=list)

    def start_refresh(self, state: int) -> None:
        assert self.begun is None, "one refresh at a time"
        self.begun = state
        self.events.append(("start", state))

    def finish_refresh(self, *, swap: bool = True, or_keep: bool = False) -> bool:
        if self.begun is None:
            return False
        self.events.append(("swap" if swap else "drop", self.begun))
        if swap:
            self.live = self.begun
        self.begun = None
        return swap

    def prune(self, keep: set[str]) -> None:
        self.events.append(("prune",))

    def retrieve_ahead(self, batch: tuple[int, int], split: str) -> SimpleNamespace:
        assert split == "train"
        self.events.append(("ask", *batch))
        asked = self.live

        def result() -> int:
            # The search reads the keys when it is done, anywhere between question and answer.
            assert self.live == asked
            return asked

        return SimpleNamespace(result=result)


class Rehearsal(Trainer):
    """A training in which nothing is computed."""

    def __init__(
        self,
        gram: GramConfig,
        steps_per_epoch: int,
        total: int,
        stop_after: int | None = None,
        *,
        learned: bool = True,
    ) -> None:
        self.memory = Memory(needs_refresh=learned)
        self.seen: list[int] = []
        """Keys that each step was given."""
        self.stop_after = stop_after
        nothing: Any = None
        super().__init__(
            RunConfig(
                gram=gram,
                train=TrainConfig(eval_every=1, patience=1),
                checkpoint=CheckpointConfig(save_steps=0),
            ),
            nothing, nothing, SimpleNamespace(steps_per_epoch=steps_per_epoch),  # type: ignore[arg-type]
            nothing, nothing, retriever=self.memory, total_steps=total, facts={},  # type: ignore[arg-type]
            writer=SimpleNamespace(banks=set),  # type: ignore[arg-type]
        )  # fmt: skip

    def _steps(self) -> Any:
        for step in range(self.total_steps + 3):  # the data would go on
            yield [(step, number) for number in range(MICRO_BATCHES)]

    def _train_step(self, batches: Any, neighbours: Any, step: int) -> None:
        assert batches == [(step, number) for number in range(MICRO_BATCHES)]
        keys = {future.result() for future in neighbours}
        assert len(keys) == 1
        self.seen.append(keys.pop())
        self.memory.events.append(("train", step))

    def _encoder_state(self) -> Any:
        return len(self.seen)

    def _validate(self, step: int) -> None:
        self.state.counter = int(step == self.stop_after)

    def _log(self, step: int, seconds: float, bar: Any) -> None: ...

    def _progress_bar(self) -> "tqdm[Any]":
        return tqdm(disable=True)


def keys_due(step: int, every: int, lag: int) -> int:
    """What step number ``step``, from 0, searches: the last snapshot that is ``lag`` steps old."""
    return max(taken for taken in range(0, step + 1, every) if taken == 0 or taken + lag <= step)


@settings(deadline=None, max_examples=200)
@given(
    every=st.none() | st.integers(1, 7),
    lag=st.none() | st.integers(0, 8),
    steps_per_epoch=st.integers(1, 7),
    total=st.integers(1, 20),
)
@example(every=1, lag=0, steps_per_epoch=7, total=5)
@example(every=None, lag=None, steps_per_epoch=4, total=9)
@example(every=4, lag=3, steps_per_epoch=1, total=12)
def test_every_step_searches_the_keys_that_are_due(
    every: int | None, lag: int | None, steps_per_epoch: int, total: int
):
    if every is not None and lag is not None:
        lag = min(lag, every - 1)  # another one is refused
    training = Rehearsal(GramConfig(refresh_every=every, refresh_lag=lag), steps_per_epoch, total)
    assert training.fit().steps == total
    interval = every or steps_per_epoch
    wait = interval // 4 if lag is None else min(lag, interval - 1)
    due = [keys_due(step, interval, wait) for step in range(total)]
    assert training.seen == due
    events = training.memory.events
    swaps = [event for event in events if event[0] == "swap"]
    assert swaps == [("swap", taken) for taken in sorted(set(due) - {0})]
    assert training.memory.begun is None
    # No bank is encoded in vain, and old ones are deleted as soon as the new one is searched.
    assert [taken for name, *taken in events if name == "start"] == [[n] for _, n in swaps]
    assert all(events[n + 1] == ("prune",) for n, event in enumerate(events) if event in swaps)


@settings(deadline=None, max_examples=50)
@given(every=st.integers(1, 5), lag=st.integers(0, 4), total=st.integers(1, 12))
def test_a_search_is_asked_for_while_the_step_before_computes_unless_the_keys_change(
    every: int, lag: int, total: int
):
    lag = min(lag, every - 1)
    training = Rehearsal(GramConfig(refresh_every=every, refresh_lag=lag), 1, total)
    training.fit()
    place = {event: number for number, event in enumerate(training.memory.events)}
    asked = [event for event in training.memory.events if event[0] == "ask"]
    assert asked == [("ask", step, number) for step in range(total) for number in (0, 1)]
    for step in range(1, total):
        changes = keys_due(step, every, lag) != keys_due(step - 1, every, lag)
        for number in range(MICRO_BATCHES):
            # Never further ahead than one step, so that every search is answered.
            assert place["ask", step, number] < place["train", step]
            assert (place["ask", step, number] < place["train", step - 1]) is not changes
            assert step < 2 or place["ask", step, number] > place["train", step - 2]


def test_a_bank_that_is_encoded_when_patience_ends_is_not_searched():
    training = Rehearsal(GramConfig(refresh_every=4, refresh_lag=3), 1, 20, stop_after=6)
    assert training.fit().steps == 6
    assert training.memory.events[-1] == ("drop", 4)
    assert training.memory.live == 0


def test_keys_without_parameters_are_never_encoded_again():
    training = Rehearsal(GramConfig(refresh_every=1, refresh_lag=0), 1, 5, learned=False)
    training.fit()
    assert training.seen == [0] * 5
    assert {name for name, *_ in training.memory.events} == {"ask", "train"}
