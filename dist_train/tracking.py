"""What a run writes down while it goes on: one JSON object per line of ``metrics.jsonl``."""

import json
import time
from pathlib import Path
from types import TracebackType


class Tracker:
    """Append metrics to the run folder; on ranks other than 0 it does nothing."""

    def __init__(self, folder: Path, *, enabled: bool) -> None:
        self._started = time.monotonic()
        # Line buffered: what was logged survives whatever ends the process.
        self._file = (
            (folder / "metrics.jsonl").open("a", encoding="utf-8", buffering=1) if enabled else None
        )

    def log(self, step: int, values: dict[str, float]) -> None:
        """Write one line.

        Args:
            step: Optimizer steps done.
            values: Metrics by name, such as ``val/mse``.
        """
        if self._file is None:
            return
        seconds = round(time.monotonic() - self._started, 3)
        self._file.write(json.dumps({"step": step, "time_s": seconds, **values}) + "\n")

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
