"""dist_train/worker.py: everything in the order in which it was given, errors included."""

import threading
import time

import pytest

from dist_train import worker as worker_module
from dist_train.worker import OrderedWorker, abandon_all


def test_work_is_done_in_order_in_one_other_thread():
    worker, done = OrderedWorker("test"), []

    def work(number: int) -> int:
        time.sleep(0.01 if number == 0 else 0)  # the first is the slowest
        done.append((number, threading.current_thread().name))
        return number * number

    futures = [worker.submit(work, number) for number in range(20)]
    assert [future.result(timeout=60) for future in futures] == [n * n for n in range(20)]
    assert done == [(number, "test") for number in range(20)]
    worker.close()


def test_an_error_reaches_whoever_waits_and_the_next_goes_on():
    worker = OrderedWorker("test")

    def fail() -> None:
        raise ValueError("broken")

    first, second = worker.submit(fail), worker.submit(lambda: 7)
    with pytest.raises(ValueError, match="broken"):
        first.result(timeout=60)
    assert second.result(timeout=60) == 7
    worker.close()


def test_the_caller_does_not_wait():
    worker, gate = OrderedWorker("test"), threading.Event()
    future = worker.submit(gate.wait, 60)
    assert not future.done()
    gate.set()
    assert future.result(timeout=60)
    worker.close()


def test_the_thread_ends_when_it_is_closed_and_never_holds_the_process():
    worker = OrderedWorker("to-be-closed")
    threads = [thread for thread in threading.enumerate() if thread.name == "to-be-closed"]
    assert [thread.daemon for thread in threads] == [True]
    worker.close()
    threads[0].join(timeout=60)
    assert not threads[0].is_alive()


def test_an_abandoned_thread_ends_with_what_it_does_and_forgets_the_rest(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(worker_module, "PATIENCE_S", 60.0)
    worker, began, done = OrderedWorker("left"), threading.Event(), []
    abandoned, close = threading.Event(), worker._loop.close

    def work(number: int) -> None:
        began.set()
        abandoned.wait(timeout=60)  # not done before it is abandoned, however slow the machine is
        done.append(number)

    def close_and_tell() -> None:
        abandoned.set()
        close()

    monkeypatch.setattr(worker._loop, "close", close_and_tell)
    futures = [worker.submit(work, number) for number in range(3)]
    assert began.wait(timeout=60)
    abandon_all()
    assert done == [0]
    assert futures[0].result(timeout=60) is None
    assert futures[1].cancelled()
    assert futures[2].cancelled()
    assert not [thread for thread in threading.enumerate() if thread.name == "left"]


def test_a_thread_that_does_not_end_is_left_after_a_while(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(worker_module, "PATIENCE_S", 0.1)
    worker, begun, gate = OrderedWorker("stuck"), threading.Event(), threading.Event()
    future = worker.submit(lambda: begun.set() or gate.wait(60))
    assert begun.wait(timeout=60)
    worker.abandon()
    assert not future.done()
    gate.set()
    assert future.result(timeout=60)


def test_the_thread_ends_with_its_owner_once_what_was_given_is_done():
    worker, gate = OrderedWorker("test"), threading.Event()
    thread = worker._loop.thread
    future = worker.submit(gate.wait, 60)
    del worker
    assert thread.is_alive()
    gate.set()
    assert future.result(timeout=60)
    thread.join(60)
    assert not thread.is_alive()
