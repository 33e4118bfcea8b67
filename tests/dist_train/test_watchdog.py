"""dist_train/watchdog.py in one process; real ranks: tests/integration/test_lost_ranks.py."""

import os
import signal
import subprocess
import threading
import time
from contextlib import suppress
from typing import Any

import pytest

from dist_train import processes, progress, stop_signals, watchdog
from dist_train.beats import Board
from dist_train.processes import Process
from dist_train.verdict import EXIT_HUNG, EXIT_LOST, Verdict
from dist_train.watchdog import Watchdog, is_lost_connection
from memory_index.groups import OtherRankError
from memory_index.sharded_index import SearchError
from tests.helpers.beats import DictStore, beat
from tests.helpers.waiting import wait_until


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "INTERVAL_S", 0.05)
    monkeypatch.setattr(watchdog, "HASTE_S", 0.02)
    monkeypatch.setattr(watchdog, "LINGER_S", 0.05)
    monkeypatch.setattr(watchdog, "LOST_PATIENCE_S", 0.5)


ENOUGH_S = 60.0
"""For what takes a moment, on the slowest of machines."""


class Ending:
    """Takes the exit code in the process's place."""

    def __init__(self) -> None:
        self.codes: list[int] = []
        self.came = threading.Event()

    def __call__(self, code: int) -> None:
        self.codes.append(code)
        self.came.set()


@pytest.fixture
def ending() -> Ending:
    return Ending()


def pair(ending: Ending, **changes: Any) -> tuple[Watchdog, DictStore, Board]:
    """A watchdog of rank 0, and the board through which a rank 1 speaks."""
    store = DictStore()
    mine, other = Board(store, 0, 2), Board(store, 1, 2)
    other.publish(beat(1, machine="", **changes))
    return Watchdog(60, lambda: None, mine, ending), store, other


def test_one_rank_alone_that_hangs_shows_its_stacks_and_ends(
    ending: Ending, capfd: pytest.CaptureFixture[str]
):
    progress.enter("backward", 13)
    alone = Watchdog(0.3, lambda: None, None, ending)
    alone.start()
    assert ending.came.wait(ENOUGH_S)
    assert ending.codes == [EXIT_HUNG]
    error = capfd.readouterr().err
    assert error.startswith("error: rank 0 has made no progress for 0 s (step 13, backward): ")
    assert "test_one_rank_alone_that_hangs" in error
    alone.end("left")


def test_a_hundred_other_threads_do_not_hide_the_stack_of_the_main_one(
    ending: Ending, capfd: pytest.CaptureFixture[str]
):
    go_on = threading.Event()
    others = [threading.Thread(target=go_on.wait, args=(ENOUGH_S,)) for _ in range(120)]
    for other in others:
        other.start()
    alone = Watchdog(0.3, lambda: None, None, ending)
    alone.start()
    assert ending.came.wait(ENOUGH_S)
    assert "test_a_hundred_other_threads" in capfd.readouterr().err
    alone.end("left")
    go_on.set()
    for other in others:
        other.join()


def test_it_watches_on_where_no_memory_is_left_for_another_thread(
    ending: Ending, monkeypatch: pytest.MonkeyPatch
):
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("unable to start watchdog thread")

    monkeypatch.setattr(watchdog.faulthandler, "dump_traceback_later", refuse)
    alone = Watchdog(0.3, lambda: None, None, ending)
    alone.start()
    assert ending.came.wait(ENOUGH_S)
    assert ending.codes == [EXIT_HUNG]
    alone.end("left")


def test_marks_keep_it_quiet(ending: Ending):
    alone = Watchdog(1.0, lambda: None, None, ending)
    alone.start()
    for _ in range(50):
        progress.mark()
        time.sleep(0.03)
    alone.end("left")
    assert ending.codes == []


def test_a_killed_launcher_is_told_once(
    ending: Ending, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    child = subprocess.Popen(["sleep", "60"])
    launcher = Process(pid=child.pid, started=processes._start_of(child.pid) or 0, name="torchrun")
    monkeypatch.setattr(processes, "launchers", lambda: (launcher,))
    told: list[bool] = []
    watching = Watchdog(60, lambda: told.append(True), None, ending)
    watching.start()
    try:
        time.sleep(0.2)
        assert told == []
    finally:
        child.kill()
        child.wait()
    wait_until(lambda: bool(told))
    time.sleep(0.2)
    watching.end("left")
    assert told == [True]
    assert ending.codes == []
    expected = f"warning: the launcher (torchrun, process {child.pid}) is gone; rank 0 stops"
    assert capfd.readouterr().err.startswith(expected)


def test_an_alarm_that_another_rank_raised_ends_this_one(
    ending: Ending, capfd: pytest.CaptureFixture[str]
):
    watching, _, other = pair(ending)
    watching.start()
    other.raise_alarm(Verdict(kind="died", rank=1, place="step 2, forward", said="h").to_text())
    assert ending.came.wait(ENOUGH_S)
    assert ending.codes == [EXIT_LOST]
    assert capfd.readouterr().err.startswith("error: rank 1 died in step 2, forward ")
    watching.end("left")


def test_an_alarm_of_its_own_reaches_the_others(ending: Ending):
    watching, _, other = pair(ending, idle_s=99.0, exchanges=(-1, 0))
    watching.start()
    assert ending.came.wait(ENOUGH_S)
    other.publish(beat(2))
    assert Verdict.from_text(other.read()[0]).rank == 1
    assert ending.codes == [EXIT_HUNG]
    watching.end("left")


def test_a_rank_that_has_waited_long_is_not_at_fault_when_the_store_goes(
    ending: Ending, monkeypatch: pytest.MonkeyPatch
):
    watching, store, other = pair(ending, exchanges=(-1, 0))
    monkeypatch.setattr(watching, "_watchdog_s", 1.0)
    progress.mark()
    watching.start()
    for number in range(2, 50):  # the other one works, for longer than that
        other.publish(beat(number, machine="", exchanges=(-1, 0)))
        time.sleep(0.03)
    assert ending.codes == []

    def refuse(*_: object) -> None:
        raise RuntimeError("no store")

    began = time.monotonic()
    monkeypatch.setattr(store, "set", refuse)
    assert ending.came.wait(ENOUGH_S)
    assert time.monotonic() - began >= 0.9  # it counts from its last exchange, a little earlier
    assert ending.codes == [EXIT_HUNG]
    watching.end("left")


def test_an_error_of_its_own_goes_on_and_the_others_hear_of_it(
    ending: Ending,
):
    watching, _, other = pair(ending)
    watching.start()
    watching.explain(AssertionError("ours\nand more"))
    other.publish(beat(2))
    wait_until(lambda: other.read()[1][0].state == "failed")
    assert other.read()[1][0].said == "AssertionError: ours"
    assert ending.codes == []


def test_a_lost_connection_with_nobody_missing_keeps_its_traceback(ending: Ending):
    watching, _, _ = pair(ending)
    watching.start()
    began = time.monotonic()
    watching.explain(RuntimeError("[gloo/transport/tcp/pair.cc:1] Connection closed by peer"))
    assert time.monotonic() - began >= 0.5
    assert ending.codes == []


def test_a_signal_does_not_keep_it_from_naming_the_lost_rank(
    ending: Ending, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(watchdog, "LOST_PATIENCE_S", ENOUGH_S)
    watching, _, other = pair(ending)
    watching.start()

    def signal_and_raise() -> None:
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.2)
        verdict = Verdict(kind="died", rank=1, place="step 2, forward", said="h")
        other.raise_alarm(verdict.to_text())

    with stop_signals.listening():
        threading.Thread(target=signal_and_raise).start()
        watching.explain(RuntimeError(GLOO))
    assert ending.came.wait(ENOUGH_S)
    assert ending.codes == [EXIT_LOST]


def test_a_rank_that_was_told_to_stop_is_not_missed_by_one_that_was_told_too(
    ending: Ending, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(watchdog, "LOST_PATIENCE_S", ENOUGH_S)
    watching, _, _ = pair(ending, state="left")
    watching.start()
    with stop_signals.listening():
        with suppress(stop_signals.StopRequestedError):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)
        began = time.monotonic()
        watching.explain(RuntimeError(GLOO))
    assert time.monotonic() - began < ENOUGH_S / 2
    assert ending.codes == []


def test_the_end_of_the_block_ends_the_threads():
    with watchdog.watch(60):
        names = {thread.name for thread in threading.enumerate()}
        assert "watchdog" in names
    wait_until(lambda: "watchdog" not in {thread.name for thread in threading.enumerate()})


def test_the_block_lets_its_error_through():
    with pytest.raises(KeyError, match="mine"), watchdog.watch(60):
        raise KeyError("mine")
    with pytest.raises(SystemExit), watchdog.watch(60):
        raise SystemExit(5)


GLOO = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:525] Connection closed by peer"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError(GLOO), True),
        (OtherRankError(f"Saving failed on rank 1: RuntimeError: {GLOO}"), True),
        (SearchError(f"the search in the memory failed on rank 1: RuntimeError: {GLOO}"), True),
        (RuntimeError("NCCL communicator was aborted on rank 1."), True),
        (SearchError("the search in the memory failed on rank 1: TypeError: no"), False),
        (RuntimeError("CUDA out of memory"), False),
        (ConnectionResetError("Connection reset by peer"), False),
        (ValueError(GLOO), False),
    ],
)
def test_a_lost_connection_is_told_from_an_error(error: Exception, expected: bool):
    assert is_lost_connection(error) == expected
    wrapped = KeyError("from")
    wrapped.__cause__ = error
    assert is_lost_connection(wrapped) == expected
