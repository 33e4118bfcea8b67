"""launch/doctor/bounded.py: a call that does not end is left behind."""

import threading
import time

import pytest

from launch.doctor.bounded import bounded, is_left_behind
from tests.helpers.waiting import wait_until


def test_what_ends_in_time_is_returned_or_raised():
    assert bounded(lambda: 7, 10) == 7
    with pytest.raises(ZeroDivisionError):
        bounded(lambda: 1 // 0, 10)


def test_what_does_not_end_is_left_behind():
    go_on = threading.Event()
    began = time.monotonic()
    with pytest.raises(TimeoutError, match=r"did not end within 0\.2 s"):
        bounded(go_on.wait, 0.2)
    assert time.monotonic() - began < 30
    assert is_left_behind()
    go_on.set()
    wait_until(lambda: not is_left_behind())
