"""Save checkpoints beside the training, and keep the newest of them; on the main rank.

A save that fails, on a full disk say, is reported and costs nothing but itself: the checkpoints
that are there stay, and the training goes on.
"""

import re
import shutil
import sys
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from dist_train.checkpoint import Content, save_checkpoint
from dist_train.worker import OrderedWorker

BEST = "best"


def step_name(step: int) -> str:
    """Folder of the checkpoint after a step."""
    return f"step_{step}"


def step_folders(run_folder: Path) -> list[Path]:
    """Folders ``step_<n>`` of a run, the newest first; whole or not."""
    found = [p for p in run_folder.glob("step_*") if re.fullmatch(r"step_\d+", p.name)]
    return sorted(found, key=lambda path: int(path.name[5:]), reverse=True)


class CheckpointWriter:
    """One thread that writes one checkpoint after the other, in the order they were given in."""

    def __init__(self, run_folder: Path, config: str, *, keep: int, enabled: bool) -> None:
        """Prepare; nothing is written yet.

        Args:
            run_folder: Of the run.
            config: The resolved configuration, as YAML.
            keep: How many ``step_<n>`` stay.
            enabled: False on all ranks but the main one: nothing is written.
        """
        self._run_folder, self._config, self._keep = run_folder, config, keep
        self._worker = OrderedWorker("checkpoints") if enabled else None
        self._pending: list[tuple[str, Future[None]]] = []
        self._banks: set[str] = set()

    def save(self, name: str, content: Content, facts: dict[str, Any]) -> None:
        """Write a checkpoint in the background; waits for the one before the last.

        Args:
            name: ``best`` or ``step_<n>``.
            content: Given away: nobody may change its tensors afterwards.
            facts: For the manifest.
        """
        if self._worker is None:
            return
        self.wait(leave=1)  # more than two copies of the state never wait in memory
        self._banks.add(facts.get("bank") or "")
        self._pending.append((name, self._worker.submit(self._write, name, content, facts)))

    def wait(self, *, leave: int = 0) -> bool:
        """Wait until all but the last ``leave`` are written; False where one could not be."""
        well = True
        while len(self._pending) > leave:
            name, future = self._pending.pop(0)
            try:
                future.result()
            except Exception as error:
                well = False
                _report(self._run_folder / name, error)
        return well

    def banks(self) -> set[str]:
        """Versions of the banks that a checkpoint of this start was saved with."""
        return set(self._banks)

    def close(self) -> None:
        """Write what is left and end the thread."""
        self.wait()
        if self._worker is not None:
            self._worker.close()

    def _write(self, name: str, content: Content, facts: dict[str, Any]) -> None:
        folder = self._run_folder / name
        save_checkpoint(folder, content, config=self._config, facts=facts)
        if name != BEST:
            for old in step_folders(self._run_folder)[self._keep :]:
                _delete(old)


def _delete(folder: Path) -> None:
    """Remove a checkpoint; first out of its place, so that it is never there in part."""
    away = folder.with_name(f".{folder.name}.gone")
    shutil.rmtree(away, ignore_errors=True)
    folder.replace(away)
    shutil.rmtree(away, ignore_errors=True)


def _report(folder: Path, error: Exception) -> None:
    reason = getattr(error, "strerror", None) or str(error)
    sys.stderr.write(
        f"warning: {folder} could not be saved ({reason}); the training goes on, and the "
        f"checkpoints in {folder.parent} are as they were. Free some space there.\n"
    )
    sys.stderr.flush()
