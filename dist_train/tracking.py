"""What a run writes down while it goes on: a JSON object per line of ``metrics.jsonl``, and wandb.

A tracker that cannot write, on a full disk say, says so once and never ends a training.
"""

import errno
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np

from dist_train import progress, stop_signals
from dist_train.metric_catalog import PANEL
from dist_train.wandb_run import WandbRun
from memory_index.atomic_file import write_text

FILE = "metrics.jsonl"
WAIT_FOR_WANDB_S = 60.0
"""Seconds that closing a run of wandb may take beside its upload."""

SUPERSEDED = "metrics.superseded.jsonl"


class Tracker:
    """Append metrics to the run folder; on ranks other than 0 it does nothing."""

    def __init__(
        self,
        folder: Path,
        *,
        enabled: bool,
        resume_at: int | None = None,
        validates_again: bool = False,
        wandb: WandbRun | None = None,
        watchdog_s: float = 600.0,
    ) -> None:
        """Open the file.

        Args:
            folder: Of the run.
            enabled: False: nothing is written.
            resume_at: The step that a resumed run goes on from: later lines, of steps that are
                done again, are moved to ``metrics.superseded.jsonl``. None: a run from the start.
            validates_again: Whether that step's validation comes once more too.
            wandb: Gets all of it too, and more; closed with this. None: no wandb.
            watchdog_s: The watchdog's patience, which an upload needs more of.
        """
        self._watchdog_s = watchdog_s
        self.wandb = wandb if enabled else None
        self._started = time.monotonic()
        self._path = folder / FILE
        self._failed = False
        self._file: FileIO | None = None
        if not enabled:
            return
        try:
            if self._path.exists():
                step = -1 if resume_at is None else resume_at
                _supersede(folder, step, "val/" if validates_again else "test/")
        except OSError as error:
            self._warn(error)
        try:
            # Unbuffered: what was logged survives whatever ends the process.
            self._file = FileIO(self._path, "ab")
        except OSError as error:
            self._warn(error)

    @property
    def takes_pictures(self) -> bool:
        """Whether anything beside numbers is kept: pictures and histograms."""
        return self.wandb is not None and self.wandb.is_open

    def log(self, step: int, values: dict[str, float]) -> None:
        """Write one line.

        Args:
            step: Optimizer steps done.
            values: Metrics by name, such as ``val/mse``.
        """
        if self.wandb is not None:
            self.wandb.log(step, values)
        if self._file is None:
            return
        seconds = round(time.monotonic() - self._started, 3)
        line = json.dumps({"step": step, "time_s": seconds, **values}) + "\n"
        content = line.encode()
        try:
            before = os.fstat(self._file.fileno()).st_size
            try:
                written = self._file.write(content)
                if written != len(content):  # the disk is full, and says so the next time
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                self._file.truncate(before)  # no torn line, before which another one would end
                raise
            self._failed = False
        except OSError as error:
            self._warn(error)

    def histograms(self, step: int, collect: Callable[[], Mapping[str, np.ndarray]]) -> None:
        """Keep histograms.

        Args:
            step: Optimizer steps done.
            collect: Makes the arrays; not called where nobody keeps them.
        """
        if self.wandb is not None and self.takes_pictures:
            self.wandb.histograms(step, collect())

    def picture(self, step: int, draw: Callable[[], tuple[bytes, str]]) -> None:
        """Keep the picture of a validation.

        Args:
            step: Optimizer steps done.
            draw: Makes a PNG and its caption; a picture that fails is told and lost.
        """
        if self.wandb is not None:
            self.wandb.image(step, PANEL, draw)

    def alert(self, title: str, text: str, level: Literal["INFO", "WARN", "ERROR"]) -> None:
        """Tell those who do not look at the terminal."""
        if self.wandb is not None:
            self.wandb.alert(title, text, level)

    def finish(
        self,
        step: int,
        *,
        summary: Mapping[str, Any],
        table: tuple[str, Sequence[str], Sequence[Any]],
        report: Sequence[Path],
        checkpoint: Path,
    ) -> None:
        """Keep what is there at the end, and close the run of wandb.

        Args:
            step: Optimizer steps done.
            summary: What a table of runs shows of this one.
            table: Name, columns and rows of the scores.
            report: Its files.
            checkpoint: Folder of the best model.
        """
        wandb = self.wandb
        if wandb is None or not wandb.is_running:
            return
        wandb.table(step, *table)
        wandb.summarise(summary)
        wandb.keep_results(report, checkpoint)
        self.close_wandb(None)

    def close_wandb(self, error: BaseException | None) -> None:
        """Close the run of wandb, as what has ended it says; called again it does nothing.

        Args:
            error: What has; None: the run has finished.
        """
        if self.wandb is None or not self.wandb.is_running:
            return
        patience = 1 + (self.wandb.upload_s + WAIT_FOR_WANDB_S) / self._watchdog_s
        progress.enter("closing wandb", patience=patience)
        if error is None:
            self.wandb.finish()
        elif isinstance(error, stop_signals.StopRequestedError):
            self.alert("stopped", f"{error}: saved at step {error.step}", "INFO")
            self.wandb.finish(exit_code=stop_signals.EXIT_STOPPED)
        else:
            title = "loss is not finite" if isinstance(error, FloatingPointError) else "failed"
            self.alert(title, f"{type(error).__name__}: {error}", "ERROR")
            self.wandb.finish(exit_code=1)

    def _warn(self, error: OSError) -> None:
        if not self._failed:
            sys.stderr.write(
                f"warning: {self._path} cannot be written ({error.strerror}); the training "
                "goes on without it.\n"
            )
        self._failed = True

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()
        self.close_wandb(error)


def _supersede(folder: Path, step: int, after: str) -> None:
    """Move what comes again out of the way: lines of later steps, and of the test after them.

    Args:
        folder: Of the run.
        step: The last step that is not done again.
        after: Prefix of what comes again of that step itself.
    """
    path = folder / FILE
    kept: list[str] = []
    moved: list[str] = []
    text = path.read_text(encoding="utf-8", errors="replace")
    for line in text.split("\n"):
        try:
            values = json.loads(line)
            again = ("test/", after)
            late = values["step"] > step or (
                values["step"] == step and any(key.startswith(again) for key in values)
            )
        except (ValueError, KeyError, TypeError, RecursionError):
            late = bool(line)  # cut off by whatever ended the run
        if line:
            (moved if late else kept).append(line)
    if moved:
        with (folder / SUPERSEDED).open("a", encoding="utf-8") as file:
            file.write("\n".join(moved) + "\n")
    if moved or (text and not text.endswith("\n")):
        write_text(path, "\n".join([*kept, ""]) if kept else "")
