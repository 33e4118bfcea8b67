"""What a run writes down while it goes on: one JSON object per line of ``metrics.jsonl``.

A tracker that cannot write, on a full disk say, says so once and never ends a training.
"""

import errno
import json
import os
import sys
import time
from io import FileIO
from pathlib import Path
from types import TracebackType

from memory_index.atomic_file import write_text

FILE = "metrics.jsonl"
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
    ) -> None:
        """Open the file.

        Args:
            folder: Of the run.
            enabled: False: nothing is written.
            resume_at: The step that a resumed run goes on from: later lines, of steps that are
                done again, are moved to ``metrics.superseded.jsonl``. None: a run from the start.
            validates_again: Whether that step's validation comes once more too.
        """
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

    def log(self, step: int, values: dict[str, float]) -> None:
        """Write one line.

        Args:
            step: Optimizer steps done.
            values: Metrics by name, such as ``val/mse``.
        """
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
