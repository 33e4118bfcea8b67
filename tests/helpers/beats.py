"""What ranks would say about themselves, and a store to say it in, without any process."""

from dataclasses import replace
from typing import Any

from dist_train.beats import Beat


class DictStore:
    """A store that is a dictionary; keeps what was asked of it."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.asked: list[list[str]] = []

    def set(self, key: str, value: str) -> None:
        self.values[key] = value

    def multi_get(self, keys: list[str]) -> list[bytes]:
        self.asked.append(keys)
        return [self.values[key].encode() for key in keys]

    def compare_set(self, key: str, expected: str, desired: str) -> bytes:
        if self.values.get(key) == expected:
            self.values[key] = desired
        return self.values[key].encode()


def beat(number: int = 1, **changes: Any) -> Beat:
    """Say what a rank without worries says."""
    phase, step = changes.pop("phase", "forward"), changes.pop("step", 2)
    return replace(
        Beat(
            number=number, phase=phase, place=f"step {step}, {phase}", step=step, idle_s=0.1,
            patience=1, marked_at=1000.0, exchanges=(7, 9), state="running", said="",
            machine="host boot space", pid=1, started=0,
        ),
        **changes,
    )  # fmt: skip
