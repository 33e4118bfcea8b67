"""A checkpoint on disk: save, verify, load.

A checkpoint folder holds

    model.safetensors         trained parameters, anchor and thresholds, in float32
    memory.safetensors        the encoder that the memory was searched with
    memory_next.safetensors   the encoder of a bank that was being built, if any
    optimizer.safetensors     what AdamW keeps of each parameter
    closed_form.safetensors   the ridges that were solved before training
    ranks.safetensors         random generators, and sums of the log, of every rank
    training.json             step, schedule, place in the epoch, early stopping
    series.json               scalers and variates of the series
    config.yaml               the resolved configuration
    manifest.json             written last: the checksum of each file, and of itself

The frozen backbone is kept by name and fingerprint only. Nothing in it is unpickled.
"""

import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from memory_index.atomic_file import sha256_of, sync_folder, write_tensors, write_text
from memory_index.manifest import checksum_of
from memory_index.shared_disk import free_name

FORMAT = 3  # 2: text prototypes by direction, backbone.kind; 3: all that resuming needs
TENSOR_FILES = ("model", "memory", "memory_next", "optimizer", "closed_form", "ranks")
FILES = (
    *(f"{name}.safetensors" for name in TENSOR_FILES),
    "training.json",
    "series.json",
    "config.yaml",
)
FILES_OF_FORMAT_2 = ("model.safetensors", "memory.safetensors", "series.json", "config.yaml")


class CheckpointError(ValueError):
    """A checkpoint is missing, incomplete, altered, or belongs to something else."""


@dataclass(frozen=True, kw_only=True)
class Content:
    """What a checkpoint holds; tensors are on the CPU and shared with nobody."""

    model: dict[str, Tensor]
    """Trained parameters and the buffers outside the backbone, in float32."""

    series: dict[str, Any]
    """Columns, scalers, frequency, seasonal period and description of the series."""

    memory: dict[str, Tensor] = field(default_factory=dict)
    """State of the encoder that the memory was searched with; empty where it has none."""

    memory_next: dict[str, Tensor] = field(default_factory=dict)
    """State of the encoder whose bank was being built; empty where none was."""

    optimizer: dict[str, Tensor] = field(default_factory=dict)
    """See :func:`dist_train.engine_state.optimizer_state`."""

    closed_form: dict[str, Tensor] = field(default_factory=dict)
    """Weights of the ridges; their other facts are in ``training``."""

    ranks: dict[str, Tensor] = field(default_factory=dict)
    """State of each rank; a name is rank/what."""

    training: dict[str, Any] = field(default_factory=dict)
    """Where the training was, as plain JSON values; empty in a checkpoint of format 2."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint(Content):
    """A verified checkpoint."""

    folder: Path
    manifest: dict[str, Any]
    """step, val_mse, dtype, backbone fingerprint."""

    @property
    def step(self) -> int:
        """Optimizer steps that its model has had."""
        return int(self.manifest["step"])

    @property
    def can_be_resumed(self) -> bool:
        """Whether it holds the state of the training too."""
        return bool(self.training)


def save_checkpoint(folder: Path, content: Content, *, config: str, facts: dict[str, Any]) -> None:
    """Write a checkpoint beside its place and move it there; on one rank only.

    An older checkpoint at that place is replaced after the new one is whole and on the disk.

    Args:
        folder: Its place, such as ``runs/name/best``.
        content: What to write.
        config: The resolved configuration, as YAML.
        facts: Written into the manifest: step, val_mse, dtype, backbone.

    Raises:
        OSError: The disk is full or cannot be written; what lay at that place is still there.
    """
    beside, old = _beside(folder, "new"), _beside(folder, "old")
    killed = next((path for path in (beside, old) if _is_whole(path)), None)
    if killed is not None and not _is_whole(folder):  # between the two renames below
        shutil.rmtree(folder, ignore_errors=True)
        killed.replace(folder)
    shutil.rmtree(beside, ignore_errors=True)
    old = free_name(old)
    beside.mkdir(parents=True)
    try:
        for name in TENSOR_FILES:
            path = beside / f"{name}.safetensors"
            write_tensors(path, getattr(content, name))
            _sync_file(path)
        write_text(beside / "training.json", json.dumps(content.training))
        write_text(beside / "series.json", json.dumps(content.series))
        write_text(beside / "config.yaml", config)
        checksums = {name: sha256_of(beside / name) for name in FILES}
        manifest = {"format": FORMAT, **facts, "sha256": checksums}
        manifest["manifest_sha256"] = checksum_of(manifest)
        write_text(beside / "manifest.json", json.dumps(manifest, indent=2))
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    sync_folder(beside)
    if folder.exists():
        folder.replace(old)
    beside.replace(folder)
    sync_folder(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read and verify a checkpoint.

    One whose saving was cut off between its two renames is found beside its place.

    Raises:
        CheckpointError: It is absent, incomplete, altered or of an unknown format.
    """
    if not _is_whole(folder):
        folder = next((p for p in (_beside(folder, "new"), _beside(folder, "old")) if _is_whole(p)),
                      folder)  # fmt: skip
    manifest = read_manifest(folder)
    read: dict[str, Any] = {}
    try:
        for name, expected in manifest["sha256"].items():
            path = folder / name
            if not path.is_file():
                raise CheckpointError(f"{path}: missing; copy the whole checkpoint folder.")
            if sha256_of(path) != expected:
                raise CheckpointError(f"{path}: altered since it was saved (checksum differs).")
        for name in manifest["sha256"]:
            key = name.partition(".")[0]
            if name.endswith(".safetensors"):
                # Copied: a mapped file is kept open, and a better model may take its place.
                mapped = load_file(folder / name)
                read[key] = {part: value.clone() for part, value in mapped.items()}
            elif name.endswith(".json"):
                read[key] = json.loads((folder / name).read_text(encoding="utf-8"))
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{folder}: cannot be read: {error}") from error
    return Checkpoint(folder=folder, manifest=manifest, **read)


def check_is_finite(content: Content) -> None:
    """Refuse to save a model that no training can go on from.

    Raises:
        FloatingPointError: A trained parameter is not finite; the message names it.
    """
    for name, value in content.model.items():
        if not bool(torch.isfinite(value).all()):
            raise FloatingPointError(
                f"{name} is not finite any more, so nothing was saved: lower "
                "train.learning_rate, or use train.precision=fp32, and resume."
            )


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read and verify the manifest of a checkpoint, not its other files.

    Raises:
        CheckpointError: It is absent, altered or of an unknown format.
    """
    path = folder / "manifest.json"
    if not path.is_file():
        raise CheckpointError(
            f"{path.parent}: no checkpoint here (manifest.json is missing); "
            "the run has not saved one, or the copy is incomplete."
        )
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        number, checksums = manifest["format"], manifest["sha256"]
        files = {FORMAT: FILES, 2: FILES_OF_FORMAT_2}.get(number)
        if files is None:
            raise CheckpointError(
                f"{path}: format {number!r:.40} is not known to this version, which reads formats "
                f"2 and {FORMAT}."
            )
        own = {key: value for key, value in manifest.items() if key != "manifest_sha256"}
        if number != 2 and manifest["manifest_sha256"] != checksum_of(own):
            raise CheckpointError(f"{path}: altered since it was saved (checksum differs).")
        if (
            not isinstance(checksums, dict)
            or set(checksums) != set(files)
            or not isinstance(manifest["step"], int)
        ):
            raise CheckpointError(f"{path}: not a checkpoint manifest (files or step are missing).")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path}: not a checkpoint manifest ({error}).") from error
    return dict(manifest)


def _is_whole(folder: Path) -> bool:
    return (folder / "manifest.json").is_file()  # written last


def _beside(folder: Path, word: str) -> Path:
    return folder.with_name(f".{folder.name}.{word}")


def _sync_file(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())
