"""dist_train/stop_signals.py: when a signal ends a process at once, and when it only is a flag."""

import os
import signal

import pytest

from dist_train import stop_signals
from dist_train.stop_signals import StopRequestedError, finishing_steps, listening, recorded

NUMBERS = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2]


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_is_only_remembered_while_steps_are_finished(
    number: signal.Signals, capfd: pytest.CaptureFixture[str]
):
    with listening(), finishing_steps():
        assert stop_signals.received() == ""
        send(number)
        assert stop_signals.received() == number.name
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"{number.name}: finishing the step and saving")
    assert ("Ctrl-C" in line) == (number == signal.SIGINT)


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_before_the_training_stops_at_once(number: signal.Signals):
    with listening(), pytest.raises(StopRequestedError, match=number.name) as caught:
        send(number)
    assert caught.value.step is None
    with pytest.raises(StopRequestedError, match=number.name), listening():
        send(number)


def test_a_signal_after_the_training_stops_at_once():
    with listening():
        with finishing_steps():
            pass
        with pytest.raises(StopRequestedError, match="SIGUSR1"):
            send(signal.SIGUSR1)


def test_what_a_library_has_swallowed_stops_the_training_before_its_first_step():
    with listening():
        with pytest.raises(StopRequestedError):
            send(signal.SIGTERM)
        with pytest.raises(StopRequestedError, match="SIGTERM"), finishing_steps():
            pytest.fail("no step is begun")


def test_the_first_signal_is_the_one_that_counts(capfd: pytest.CaptureFixture[str]):
    with listening(), finishing_steps():
        for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            send(number)
        assert stop_signals.received() == "SIGUSR2"
    assert len(capfd.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("between", [[], [signal.SIGTERM]])
def test_a_second_ctrl_c_does_not_wait(between: list[int]):
    """Between them a launcher sends its own signal."""
    with listening(), finishing_steps():
        for number in (signal.SIGINT, *between):
            send(number)
        assert stop_signals.received() == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


def test_handlers_are_those_of_before_and_nothing_is_remembered_afterwards():
    before = [signal.getsignal(number) for number in NUMBERS]
    with listening():
        assert [signal.getsignal(number) for number in NUMBERS] != before
        with finishing_steps():
            send(signal.SIGTERM)
    assert [signal.getsignal(number) for number in NUMBERS] == before
    with listening(), finishing_steps():
        assert stop_signals.received() == ""


def test_what_is_refused_while_a_signal_waits_is_told_first():
    with stop_signals.listening():
        with pytest.raises(KeyError, match="own"), stop_signals.checking():
            {}[os.kill(os.getpid(), signal.SIGTERM) or "own"]
        with pytest.raises(StopRequestedError, match="SIGTERM"), stop_signals.checking():
            pass


def test_what_is_recorded_keeps_its_order_and_what_is_ignored_stays_so():
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with recorded(NUMBERS) as got:
            for number in (signal.SIGUSR2, signal.SIGUSR1, signal.SIGTERM, signal.SIGUSR2):
                send(number)
        assert got == [signal.SIGUSR2, signal.SIGTERM, signal.SIGUSR2]
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert signal.getsignal(signal.SIGTERM) is handler
