"""dist_train/trainer.py: which keys a step searches, and when. A rehearsal, without arithmetic."""

import json
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dist_train.config import RunConfig, TrainConfig
from dist_train.stop_signals import StopRequestedError
from dist_train.terminal import TrainingBar
from dist_train.trainer import Trainer
from dist_train.training_state import TrainingState
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

    def refresh(self, state: int) -> None:
        self.live = state

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


@dataclass(frozen=True, kw_only=True)
class Saved:
    """What a checkpoint keeps of a rehearsal."""

    state: dict[str, Any]
    keys: Any
    keys_next: Any


class Rehearsal(Trainer):
    """A training in which nothing is computed."""

    def __init__(
        self,
        gram: GramConfig,
        steps_per_epoch: int,
        total: int,
        *,
        patience_ends_at: int | None = None,
        asked_after: int | None = None,
        in_validation: bool = False,
        saved: Saved | None = None,
        needs_refresh: bool = True,
    ) -> None:
        self.memory = Memory(needs_refresh=needs_refresh)
        self.seen: dict[int, int] = {}
        """Keys that each step was given."""
        self.patience_ends_at = patience_ends_at
        self.asked_after, self.in_validation = asked_after, in_validation
        self.saved: list[Saved] = []
        nothing: Any = None
        tracker: Any = SimpleNamespace(close_wandb=lambda error: None)
        super().__init__(
            RunConfig(gram=gram, train=TrainConfig(eval_every=1, patience=1)),
            nothing, nothing, SimpleNamespace(steps_per_epoch=steps_per_epoch),  # type: ignore[arg-type]
            nothing, tracker, retriever=self.memory, total_steps=total, facts={},  # type: ignore[arg-type]
            throughput=nothing,
            writer=SimpleNamespace(banks=set, wait=lambda: True),  # type: ignore[arg-type]
            state=None if saved is None else TrainingState.from_json(saved.state),
        )  # fmt: skip
        if saved is not None:
            checkpoint: Any = SimpleNamespace(memory=saved.keys, memory_next=saved.keys_next)
            self.restore_memory(checkpoint)

    def _steps(self) -> Any:
        for step in range(self.state.step, self.total_steps + 3):  # the data would go on
            yield [(step, number) for number in range(MICRO_BATCHES)]

    def _train_step(self, batches: Any, neighbours: Any, step: int) -> None:
        assert batches == [(step, number) for number in range(MICRO_BATCHES)]
        assert step not in self.seen
        keys = {future.result() for future in neighbours}
        assert len(keys) == 1
        self.seen[step] = keys.pop()
        self.memory.events.append(("train", step))

    def _encoder_state(self) -> Any:
        return self.state.step

    def _validate(self, step: int) -> None:
        if self.in_validation:
            self._ask(step)
        self.memory.events.append(("validate", step))
        self.state.counter = int(step == self.patience_ends_at)

    def stop_if_asked(self) -> None:
        if not self.in_validation:
            self._ask(self.state.step)

    def _ask(self, step: int) -> None:
        if step == self.asked_after:
            raise StopRequestedError("SIGTERM")

    def _save_step(self) -> None:
        self.saved.append(
            Saved(
                state=json.loads(json.dumps(self.state.to_json())),
                keys=self.memory.live,
                keys_next=self._memory_next,
            )
        )

    def _log(self, step: int, seconds: float, bar: Any) -> None: ...

    def _progress_bar(self) -> TrainingBar:
        return TrainingBar(self.total_steps, self.state.step, shown=False)


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
    assert training.seen == dict(enumerate(due))
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
    training = Rehearsal(GramConfig(refresh_every=4, refresh_lag=3), 1, 20, patience_ends_at=6)
    assert training.fit().steps == 6
    assert training.memory.events[-1] == ("drop", 4)
    assert training.memory.live == 0


def test_keys_without_parameters_are_never_encoded_again():
    training = Rehearsal(GramConfig(refresh_every=1, refresh_lag=0), 1, 5, needs_refresh=False)
    training.fit()
    assert training.seen == dict.fromkeys(range(5), 0)
    assert {name for name, *_ in training.memory.events} == {"ask", "train", "validate"}


@settings(deadline=None, max_examples=150)
@given(
    every=st.integers(1, 6),
    lag=st.integers(0, 5),
    total=st.integers(1, 14),
    cuts=st.lists(st.tuples(st.integers(0, 14), st.booleans()), min_size=1, max_size=4),
)
@example(every=4, lag=3, total=12, cuts=[(5, False), (5, False)])  # while a bank is encoded
@example(every=4, lag=3, total=12, cuts=[(7, True), (8, True), (8, False)])  # at swap and start
@example(every=1, lag=0, total=4, cuts=[(4, False)])  # in the last step
def test_a_run_that_was_stopped_searches_the_keys_of_one_that_was_not(
    every: int, lag: int, total: int, cuts: list[tuple[int, bool]]
):
    gram = GramConfig(refresh_every=every, refresh_lag=min(lag, every - 1))
    whole = Rehearsal(gram, 1, total)
    whole.fit()
    seen: dict[int, int] = {}
    validated: list[int] = []
    saved: Saved | None = None

    def go_on(asked_after: int | None, in_validation: bool = False) -> Rehearsal:
        training = Rehearsal(
            gram, 1, total, asked_after=asked_after, in_validation=in_validation, saved=saved
        )
        if asked_after is None:
            assert training.fit().steps == total
        else:
            with pytest.raises(StopRequestedError) as stopped:
                training.fit()
            assert stopped.value.step == asked_after
        assert not seen.keys() & training.seen.keys(), "no step is done twice"
        seen.update(training.seen)
        validated.extend(event[1] for event in training.memory.events if event[0] == "validate")
        return training

    # One start after the other; at one step first in its validation, then after it.
    for step, after in sorted(
        {(min(cut, total), not in_validation) for cut, in_validation in cuts}
    ):
        (saved,) = go_on(step, in_validation=not after).saved
    go_on(None)
    assert seen == whole.seen
    assert validated == list(range(total + 1))
