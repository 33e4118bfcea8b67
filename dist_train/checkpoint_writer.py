"""Save checkpoints beside the training, and keep the newest of them; on the main rank.

A save that fails, on a full disk say, is reported and costs nothing but itself: the checkpoints
that are there stay, and the training goes on.
"""

import shutil
import sys
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any

from dist_train.checkpoint import CheckpointError, Content, read_manifest, save_checkpoint
from dist_train.run_folder import step_folders
from dist_train.worker import OrderedWorker

BEST = "best"


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
        self._pending: list[tuple[str, str, Future[None]]] = []
        self._unsaved_best: tuple[Content, dict[str, Any]] | None = None

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
        future = self._worker.submit(self._write, name, content, facts)
        self._pending.append((name, facts.get("bank") or "", future))

    def wait(self, *, leave: int = 0) -> bool:
        """Wait until all but the last ``leave`` are written; False where one could not be."""
        well = True
        while len(self._pending) > leave:
            name, _, future = self._pending.pop(0)
            try:
                future.result()
            except Exception as error:
                well = False
                _report(self._run_folder / name, error)
        return well

    def banks(self) -> set[str]:
        """Versions of the banks that the checkpoints of the run were saved with."""
        if self._worker is None:
            return set()
        kept = [self._run_folder / BEST, *step_folders(self._run_folder)]
        return {bank for _, bank, _ in self._pending} | {_bank_of(folder) for folder in kept}

    def close(self) -> None:
        """Write what is left and end the thread.

        Raises:
            OSError: The best model could not be saved.
        """
        self.wait()
        if self._worker is None:
            return
        last_try = self._worker.submit(self._save_best_again)
        self._worker.close()
        last_try.result()

    def _write(self, name: str, content: Content, facts: dict[str, Any]) -> None:
        folder = self._run_folder / name
        if name == BEST:
            self._unsaved_best = content, facts
            self._save_best_again()
            return
        with suppress(OSError):  # reported when it was tried first
            self._save_best_again()
        save_checkpoint(folder, content, config=self._config, facts=facts)
        for old in step_folders(self._run_folder)[self._keep :]:
            if not old.is_symlink():
                delete(old)

    def _save_best_again(self) -> None:
        """Write the best model that could not be written, if there is one."""
        if self._unsaved_best is None:
            return
        content, facts = self._unsaved_best
        save_checkpoint(self._run_folder / BEST, content, config=self._config, facts=facts)
        self._unsaved_best = None


def sweep(run_folder: Path) -> None:
    """Delete what saves and deletions that were killed have left, before the first save.

    A best model whose save was cut off between its two renames stays: it is the only one.
    """
    for pattern in (".step_*.new", ".step_*.old*", ".step_*.gone", ".best.old.*"):
        for left in run_folder.glob(pattern):
            shutil.rmtree(left, ignore_errors=True)


def delete(folder: Path) -> None:
    """Remove a checkpoint; first out of its place, so that it is never there in part."""
    away = folder.with_name(f".{folder.name}.gone")
    shutil.rmtree(away, ignore_errors=True)
    folder.replace(away)
    shutil.rmtree(away, ignore_errors=True)


def _bank_of(folder: Path) -> str:
    try:
        return read_manifest(folder)["bank"] or ""
    except (CheckpointError, KeyError):
        return ""  # deleted meanwhile, damaged, or of a format that does not say


def _report(folder: Path, error: Exception) -> None:
    reason = getattr(error, "strerror", None) or str(error)
    sys.stderr.write(
        f"warning: {folder} could not be saved ({reason}); the training goes on, and the "
        f"checkpoints in {folder.parent} are as they were. Free some space there.\n"
    )
    sys.stderr.flush()
