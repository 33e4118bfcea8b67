"""Which checkpoint a run goes on from, and whether it may.

``--resume auto`` takes the newest checkpoint of the run's own folder that verifies. ``--resume
PATH`` takes a checkpoint, or the newest one of another run's folder, into a new run: exactly, if
nothing that decides its course differs, else its weights alone.
"""

import json
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from dist_train import distributed
from dist_train.checkpoint import Checkpoint, CheckpointError, load_checkpoint
from dist_train.checkpoint_writer import BEST
from dist_train.config import ConfigError, RunConfig, load_saved_config
from dist_train.run_folder import (
    RESULT_FILE,
    check_same_settings,
    differences,
    is_inside,
    step_folders,
)

AUTO = "auto"


@dataclass(frozen=True, kw_only=True)
class Resumption:
    """A checkpoint to go on from."""

    checkpoint: Checkpoint
    in_place: bool
    """Whether it is the run's own, and the run goes on in its folder."""

    differing: tuple[str, ...]
    """What keeps it from being resumed exactly, as ``key (its value, now another)``."""

    skipped: tuple[str, ...]
    """Newer checkpoints that were passed over, and why."""

    @property
    def is_exact(self) -> bool:
        """Whether the training goes on as if nothing had happened; else the weights alone do."""
        return not self.differing


def choose(config: RunConfig, where: str) -> Resumption | None:
    """Find the checkpoint to go on from; None where the run has none yet. Collective.

    The main rank looks; the others load what it has found.

    Args:
        config: The run.
        where: ``auto``, or the path of a checkpoint or of a run.

    Raises:
        CheckpointError: The path holds no checkpoint that verifies, or ranks see different ones.
        ConfigError: The run's own checkpoint was made with settings that decide its course.
    """
    found: Resumption | None = None
    with distributed.agree_or_raise("Choosing a checkpoint"):
        if distributed.is_main_rank():
            found = _choose(config, where)
    checkpoint = _shared(None if found is None else found.checkpoint)
    told = None if found is None else (found.in_place, found.differing, found.skipped)
    told = distributed.gather_objects(told)[0]  # type: ignore[assignment]
    if checkpoint is None or told is None:
        return None
    in_place, differing, skipped = told
    return Resumption(
        checkpoint=checkpoint, in_place=in_place, differing=differing, skipped=skipped
    )


def load_together(folder: Path) -> tuple[Checkpoint | None, str]:
    """Load a checkpoint on every rank, if the main rank can; collective.

    Returns:
        It, or None; and why not, on the main rank.

    Raises:
        CheckpointError: Another rank sees another one.
    """
    found, why = None, ""
    if distributed.is_main_rank():
        try:
            found = load_checkpoint(folder)
        except CheckpointError as error:
            why = str(error)
    return _shared(found), why


def _shared(found: Checkpoint | None) -> Checkpoint | None:
    """Load on every rank what the main rank has loaded; collective."""
    told = None if found is None else (str(found.folder), found.manifest)
    told = distributed.gather_objects(told)[0]  # type: ignore[assignment]
    if told is None:
        return None
    folder, manifest = told
    with distributed.agree_or_raise("Loading a checkpoint"):
        if found is None:
            found = load_checkpoint(Path(folder))
            if found.manifest != manifest:
                raise CheckpointError(
                    f"{folder}: this rank sees another checkpoint than the first one; put "
                    "runs_dir on a disk that all nodes share."
                )
    return found


def find_newest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """Find the newest checkpoint of a run that verifies and can be resumed.

    Returns:
        It, or None; and what is wrong with newer ones.
    """
    candidates: list[tuple[int, Path]] = [(int(p.name[5:]), p) for p in step_folders(folder)]
    skipped: list[str] = []
    best: Checkpoint | None = None
    try:
        best = load_checkpoint(folder / BEST)  # to know its step
        candidates.append((best.step, folder / BEST))
    except CheckpointError as error:
        if (folder / BEST).exists():
            skipped.append(str(error))
    # At the same step the one that was saved last, after all that is due then, comes first.
    candidates.sort(key=lambda item: (item[0], item[1].name != BEST), reverse=True)
    for step, path in candidates:
        try:
            checkpoint = best if best and path.name == BEST else load_checkpoint(path)
            if checkpoint.step != step:
                raise CheckpointError(f"{path}: holds step {checkpoint.step}, not {step}.")
        except CheckpointError as error:
            skipped.append(str(error))
            continue
        if checkpoint.can_be_resumed:
            return checkpoint, skipped
        skipped.append(f"{path}: format {checkpoint.manifest['format']} holds weights only.")
    return None, skipped


def _choose(config: RunConfig, where: str) -> Resumption | None:
    own = config.run_folder
    path = own if where == AUTO else Path(where)
    if where != AUTO and not path.is_dir():
        raise CheckpointError(f"--resume {where}: no such folder; give a checkpoint or a run.")
    in_place = is_inside(path, own)
    skipped: list[str] = []
    if (path / "manifest.json").is_file():
        checkpoint: Checkpoint | None = load_checkpoint(path)
    else:
        checkpoint, skipped = find_newest(path)
        if checkpoint is None and where != AUTO:
            checkpoint = load_checkpoint(path / BEST)  # one of an older format, or its error
    if checkpoint is None:
        if skipped:
            raise CheckpointError(
                f"--resume {where}: no checkpoint of {path} can be used: {' '.join(skipped)} "
                "Choose another --name to start anew; nothing was changed."
            )
        check_same_settings(config)
        return None
    then = load_config_of(checkpoint)
    now = config
    if now.gram.use_gram == "auto":  # decided once, by the run that saved it
        now = _with_use_gram(now, then)
    differing = differences(now, then)
    if in_place and differing:
        raise ConfigError(
            f"--resume {where}: {checkpoint.folder} was trained with other settings: "
            f"{'; '.join(differing)}. Give the ones it was trained with, those of "
            f"{own / 'config.yaml'}, or another --name to start anew."
        )
    if in_place and not checkpoint.can_be_resumed:
        raise CheckpointError(
            f"{checkpoint.folder}: format {checkpoint.manifest['format']} holds weights only; "
            "start from them under another --name."
        )
    if not checkpoint.can_be_resumed:
        differing.append(f"its format ({checkpoint.manifest['format']})")
    return Resumption(
        checkpoint=checkpoint,
        in_place=in_place,
        differing=tuple(differing),
        skipped=tuple(skipped),
    )


def _with_use_gram(config: RunConfig, other: RunConfig) -> RunConfig:
    return replace(config, gram=replace(config.gram, use_gram=other.gram.use_gram))


def set_aside(folder: Path, resumption: Resumption) -> list[str]:
    """Rename what is newer than the checkpoint or damaged, so that it is neither taken nor lost.

    On the main rank, before the run writes.

    Returns:
        What was renamed, in words.
    """
    told: list[str] = []
    chosen = resumption.checkpoint
    damaged = [path for path in [folder / BEST] if path.exists() and not _verifies(path)]
    newer = [path for path in step_folders(folder) if int(path.name[5:]) > chosen.step]
    same = [p for p in step_folders(folder) if int(p.name[5:]) == chosen.step]
    damaged += [path for path in same if path != chosen.folder and not _verifies(path)]
    finished = [path for path in [folder / RESULT_FILE] if path.exists()]
    for path in (*newer, *damaged, *finished):
        number = 1
        while (target := path.with_name(f"{path.name}.set_aside_{number}")).exists():
            number += 1
        path.replace(target)
        told.append(f"{path} is now {target.name}")
    return told


def load_config_of(checkpoint: Checkpoint) -> RunConfig:
    """Read the configuration that a checkpoint was saved with."""
    return load_saved_config(checkpoint.folder / "config.yaml")


def write_down(path: Path, resumption: Resumption, environment: dict[str, str]) -> None:
    """Append to a run's history where, when and on what it went on."""
    entry = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "checkpoint": str(resumption.checkpoint.folder),
        "step": resumption.checkpoint.step,
        "exact": resumption.is_exact,
        "skipped": resumption.skipped,
        "ranks": distributed.world_size(),
        "environment": environment,
    }
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


def _verifies(path: Path) -> bool:
    try:
        load_checkpoint(path)
    except CheckpointError:
        return False
    return True
