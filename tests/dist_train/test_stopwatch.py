"""dist_train/stopwatch.py: laps add up, pauses do not count."""

import time

import pytest

from dist_train.stopwatch import Stopwatch


def test_a_lap_counts_what_is_not_paused(monkeypatch: pytest.MonkeyPatch):
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    watch = Stopwatch()
    now += 2
    with watch.paused():
        now += 50
    now += 3
    assert watch.lap() == 5
    now += 1
    assert watch.lap() == 1


def test_a_pause_that_fails_still_counts_as_pause(monkeypatch: pytest.MonkeyPatch):
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    watch = Stopwatch()

    def fail_after_seven() -> None:
        nonlocal now
        with watch.paused():
            now += 7
            raise ValueError("x")

    with pytest.raises(ValueError, match="x"):
        fail_after_seven()
    assert watch.lap() == 0
