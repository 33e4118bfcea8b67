"""Waits with an end: a call that takes too long is left behind, so that the rest is still told.

A disk that does not answer, or a library inside a collective, cannot be interrupted from Python.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

R = TypeVar("R")

_left_behind: list[threading.Thread] = []


def bounded(call: Callable[[], R], timeout_s: float) -> R:
    """Call something, in a thread of its own, for so long at most.

    Returns:
        What it returned.

    Raises:
        TimeoutError: It did not end. Its thread goes on: see :func:`is_left_behind`.
        Exception: Whatever it raised.
    """
    answer: Future[R] = Future()

    def run() -> None:
        try:
            answer.set_result(call())
        except BaseException as error:
            answer.set_exception(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(timeout_s)
    if thread.is_alive():
        _left_behind.append(thread)
        raise TimeoutError(f"did not end within {timeout_s:g} s")
    return answer.result()


def is_left_behind() -> bool:
    """Whether a call still goes on: a process that has one ends with ``os._exit``."""
    return any(thread.is_alive() for thread in _left_behind)
