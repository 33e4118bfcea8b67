"""dist_train/memory_account.py: growth belongs to the phase that it happened in."""

import mmap
import threading
import time

import numpy as np
import pytest

from dist_train import memory_account
from dist_train.memory_account import PHASES, MemoryAccount
from dist_train.process_memory import MemoryUse

MIB = 2**20


def block(mib: int) -> np.ndarray:
    """Memory that is mapped anew, whatever the allocator has left of earlier tests."""
    own = mmap.mmap(-1, mib * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory = np.frombuffer(own, dtype=np.uint8)
    memory.fill(1)
    return memory


def test_growth_belongs_to_the_phase_that_it_happened_in():
    account = MemoryAccount()
    with account.phase("backbone"):
        weights = block(96)
    with account.phase("forward"):
        activations = block(32)
    assert account.grown("backbone").resident == pytest.approx(96 * MIB, abs=8 * MIB)
    assert account.grown("forward").resident == pytest.approx(32 * MIB, abs=8 * MIB)
    assert account.grown("bank") == MemoryUse()
    assert weights.size == 3 * activations.size


def test_a_phase_that_comes_again_keeps_its_largest_growth():
    account = MemoryAccount()
    kept = []
    for mib in (8, 64, 1):
        with account.phase("optimizer"):
            kept.append(block(mib))
    assert account.grown("optimizer").resident == pytest.approx(64 * MIB, abs=8 * MIB)


def test_an_error_is_remembered_with_its_innermost_phase():
    account = MemoryAccount()
    error = MemoryError()
    kept = []

    def evaluate() -> None:
        with account.phase("evaluation"):
            kept.append(block(16))
            with account.phase("bank"):
                kept.append(block(64))
                raise error

    with pytest.raises(MemoryError):
        evaluate()
    failed = account.failed_phase(error)
    assert failed is not None
    assert (failed.name, failed.failure.error) == ("bank", error)
    assert failed.grown.resident == pytest.approx(64 * MIB, abs=8 * MIB)
    assert failed.use.resident > 64 * MIB
    account.forget()
    assert account.failed_phase(error) is None


def test_an_error_of_a_thread_keeps_the_phase_of_the_thread():
    account = MemoryAccount()
    caught: list[MemoryError] = []

    def build() -> None:
        try:
            with account.phase("bank"):
                raise MemoryError
        except MemoryError as error:
            caught.append(error)

    thread = threading.Thread(target=build)
    thread.start()
    thread.join()
    with pytest.raises(MemoryError), account.phase("forward"):
        raise caught[0]
    failed = account.failed_phase(caught[0])
    assert failed is not None
    assert failed.name == "bank"


def test_an_error_raised_from_it_is_found_too_and_another_is_not():
    account = MemoryAccount()

    def load() -> None:
        try:
            with account.phase("loading"):
                raise MemoryError
        except MemoryError as error:
            raise ValueError("batch") from error

    with pytest.raises(ValueError, match="batch") as caught:
        load()
    failed = account.failed_phase(caught.value)
    assert failed is not None
    assert failed.name == "loading"
    assert account.failed_phase(MemoryError()) is None


def test_an_error_that_was_handled_does_not_hide_the_next():
    account = MemoryAccount()
    for name in ("bank", "forward"):
        error = MemoryError()
        with pytest.raises(MemoryError), account.phase(name):
            raise error
    failed = account.failed_phase(error)
    assert failed is not None
    assert failed.name == "forward"


def test_other_errors_are_none_of_its_business():
    account = MemoryAccount()
    error = ValueError("train.seed")
    with pytest.raises(ValueError, match="seed"), account.phase("data"):
        raise error
    assert account.failed_phase(error) is None


def test_a_misspelt_phase_is_refused():
    with pytest.raises(AssertionError, match="foreward"), MemoryAccount().phase("foreward"):
        pass


def test_phases_have_words_for_a_sentence():
    for phase in PHASES.values():
        assert phase.doing
        assert not phase.part.endswith(".")


def test_seconds_of_a_phase_are_its_own_without_those_inside_it(monkeypatch: pytest.MonkeyPatch):
    now = 100.0
    monkeypatch.setattr(memory_account.time, "monotonic", lambda: now)

    def work(seconds: float) -> None:
        nonlocal now
        now += seconds

    account = MemoryAccount()
    with account.phase("forward"):
        work(0.5)
        for _ in range(2):
            with account.phase("bank"):
                work(1.0)

    def fail() -> None:
        with account.phase("data"):
            work(0.25)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    seconds = account.seconds()
    assert list(seconds) == ["bank", "forward", "data"]
    assert seconds == {"bank": 2.0, "forward": 0.5, "data": 0.25}
    assert account.cost()["seconds"]["building the memory bank"] == 2.0


def test_seconds_of_a_thread_beside_are_not_taken_from_those_of_the_training():
    account = MemoryAccount()

    def build() -> None:
        with account.phase("bank"):
            time.sleep(0.2)

    beside = threading.Thread(target=build)
    with account.phase("forward"):
        beside.start()
        beside.join()
    seconds = account.seconds()
    assert seconds["bank"] >= 0.2
    assert seconds["forward"] >= 0.2
