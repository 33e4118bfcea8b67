"""dist_train/progress.py: the place of the main thread, and of no other unless it waits for it."""

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from dist_train import progress
from dist_train.worker import OrderedWorker


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    before = dict(progress._positions)
    yield
    progress._positions.clear()
    progress._positions.update(before)


def in_thread(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return thread


def test_a_phase_keeps_the_step_until_there_is_another():
    progress.enter("forward", 13)
    before = progress.current()
    progress.enter("backward")
    now = progress.current()
    assert (before.place, now.place) == ("step 13, forward", "step 13, backward")
    assert now.marks == before.marks + 1
    assert before.at <= now.at <= time.monotonic()


def test_a_mark_counts_and_keeps_the_place():
    progress.enter("loading", 3, patience=6)
    before = progress.current()
    time.sleep(0.01)
    progress.mark()
    now = progress.current()
    assert (now.place, now.patience) == ("step 3, loading", 6)
    assert now.marks == before.marks + 1
    assert now.at > before.at


def test_the_next_phase_has_ordinary_patience():
    progress.enter("loading", patience=6)
    progress.enter("forward")
    assert progress.current().patience == 1


def test_before_the_first_step_a_place_is_its_phase():
    assert progress.Position(phase="ridge").place == "ridge"


def test_marks_of_another_thread_do_not_hide_that_the_main_thread_hangs():
    progress.enter("backward", 2)
    before = progress.current()
    in_thread(lambda: progress.enter("building the memory"))
    in_thread(progress.mark)
    assert progress.current() == before


def test_they_count_while_the_main_thread_waits_for_that_thread():
    progress.enter("retrieval wait", 2)
    before = progress.current()

    def work() -> progress.Position:
        progress.enter("building the memory", patience=3)
        progress.mark()
        return progress.current()

    worker = OrderedWorker("test")
    began, go_on = threading.Event(), threading.Event()
    future = worker.submit(lambda: (began.set(), go_on.wait(60), work())[2])
    assert began.wait(60)

    def go_on_once_it_waits() -> None:
        while progress._awaited is None:
            time.sleep(0.01)
        go_on.set()

    threading.Thread(target=go_on_once_it_waits, daemon=True).start()
    during = future.result()
    worker.close()
    assert during.place == "step 2, retrieval wait: building the memory"
    assert during.marks == before.marks + 2
    assert during.patience == 3
    assert progress.current() == before, "and no longer"


def test_a_thread_does_not_inherit_the_place_of_one_that_ended():
    ended = in_thread(lambda: progress.enter("building the memory", 7, patience=6))
    places: list[progress.Position] = []
    while not places:  # until the system gives that number again, which it does soon
        again = in_thread(progress.mark)
        if again.ident == ended.ident:
            with progress.waiting_for(again):
                places.append(progress.current())
    own = progress.current()
    assert places[0].place == own.place
    assert places[0].marks == own.marks + 1


def test_another_thread_may_wait_for_whom_it_likes():
    before = progress.current()
    marker = in_thread(progress.mark)

    def wait() -> None:
        with progress.waiting_for(marker):
            assert progress.current() == before

    in_thread(wait)


def test_it_costs_next_to_nothing():
    began = time.thread_time()  # what else the machine does is not its cost
    for step in range(10_000):
        progress.enter("forward", step)
    assert (time.thread_time() - began) / 10_000 < 1e-4
