"""What a training says on the terminal: a bar there, plain lines in a log file.

The bar has loss, validation error, rate and time left. Where stderr is no terminal (a pipe, a log
of Slurm) or a dumb one, a line now and then says the same, without control characters. Nothing is
coloured.
"""

import math
import os
import sys
import time
from typing import Any, TextIO

from tqdm import tqdm

LINE_EVERY_S = 20.0
"""Seconds between plain lines."""

BAR_FORMAT = (
    "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} steps [{elapsed}<{remaining}{postfix}]"
)


def is_terminal(stream: TextIO) -> bool:
    """Whether a stream can go back in its line, and says how long a line is."""
    if not stream.isatty() or os.environ.get("TERM") == "dumb":
        return False
    try:
        return os.get_terminal_size(stream.fileno()).columns > 0  # else a bar would be empty
    except OSError:
        return False


class TrainingBar:
    """How far a training is; the postfix is what was shown last."""

    def __init__(self, total: int, done: int, *, shown: bool) -> None:
        """Begin.

        Args:
            total: Optimizer steps of the whole run.
            done: Of them, before this start.
            shown: False: nothing is ever printed.
        """
        self._values: dict[str, float] = {}
        self._total, self._first, self._done = total, done, done
        self._shown = shown
        self._started = self._told = time.monotonic()
        self._told_at = -1
        self._bar: tqdm[Any] | None = None
        if shown and is_terminal(sys.stderr):
            self._bar = tqdm(
                total=total, initial=done, desc="training", bar_format=BAR_FORMAT,
                dynamic_ncols=True, file=sys.stderr, mininterval=0.5,
            )  # fmt: skip

    def update(self) -> None:
        """Count one step."""
        self._done += 1
        if self._bar is not None:
            self._bar.update()
        elif self._shown and time.monotonic() - self._told >= LINE_EVERY_S:
            self._tell()

    def show(
        self,
        *,
        loss: float | None = None,
        val_mse: float | None = None,
        best: float | None = None,
        windows_per_s: float | None = None,
    ) -> None:
        """Set what is shown beside the steps; what is None or not finite stays as it was."""
        given = {"loss": loss, "val mse": val_mse, "best": best, "windows/s": windows_per_s}
        for name, value in given.items():
            if value is not None and math.isfinite(value):
                self._values[name] = value
        if self._bar is not None:
            self._bar.set_postfix_str(self._postfix(), refresh=False)

    def close(self) -> None:
        """End the bar, or say the last line."""
        if self._bar is not None:
            self._bar.close()
        elif self._shown and self._told_at != self._done:
            self._tell(is_last=True)

    def _postfix(self) -> str:
        order = ("loss", "val mse", "best", "windows/s")
        known = [(name, self._values[name]) for name in order if name in self._values]
        return ", ".join(
            f"{value:.1f} windows/s" if name == "windows/s" else f"{name} {value:.4f}"
            for name, value in known
        )

    def _tell(self, *, is_last: bool = False) -> None:
        now = time.monotonic()
        passed, here = now - self._started, self._done - self._first
        times = tqdm.format_interval(int(passed))
        if here and not is_last:
            left = passed / here * (self._total - self._done)
            times += f", {tqdm.format_interval(int(left))} left"
        words = [f"training: step {self._done}/{self._total}", self._postfix()]
        sys.stderr.write(", ".join(word for word in words if word) + f" [{times}]\n")
        sys.stderr.flush()
        self._told, self._told_at = now, self._done


def say(*lines: str, quiet: bool = False) -> None:
    """Write lines on stdout, each at once; where ``quiet``, warnings alone, on stderr.

    In one piece: ranks share a stream, and unbuffered, as under ``deepspeed``, print writes two.
    """
    for line in lines:
        is_warning = line.startswith(("warning:", "leak:", "error:"))
        if quiet and not is_warning:
            continue
        stream = sys.stderr if quiet else sys.stdout
        stream.write(f"{line}\n")
        stream.flush()
