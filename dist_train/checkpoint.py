"""A checkpoint on disk: save, verify, load.

A checkpoint folder holds the trained parameters and the anchor (``model.safetensors``), the
encoder that the memory was searched with (``memory.safetensors``), the scalers of the series
(``series.json``), the resolved configuration (``config.yaml``) and, written
last, ``manifest.json`` with the checksum of each. The frozen backbone is kept by name and
fingerprint only. Nothing in it is unpickled.
"""

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dist_train.config import RunConfig, config_to_yaml
from memory_index.atomic_file import write_text

FORMAT = 2  # 2: text prototypes by direction, backbone.kind
FILES = ("model.safetensors", "memory.safetensors", "series.json", "config.yaml")


class CheckpointError(ValueError):
    """A checkpoint is missing, incomplete, altered, or belongs to something else."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A verified checkpoint."""

    folder: Path
    state: dict[str, Tensor]
    """Trained parameters and the buffers outside the backbone, in float32."""

    memory: dict[str, Tensor]
    """State of the encoder that the memory was searched with; empty where it has none."""

    series: dict[str, Any]
    """Columns, scalers, frequency, seasonal period and description of the series."""

    manifest: dict[str, Any]
    """step, val_mse, dtype, backbone fingerprint."""


def save_checkpoint(
    folder: Path,
    *,
    state: dict[str, Tensor],
    memory: dict[str, Tensor],
    series: dict[str, Any],
    config: RunConfig,
    facts: dict[str, Any],
) -> None:
    """Write a checkpoint beside its place and move it there; on one rank only.

    An older checkpoint at that place is replaced after the new one is whole.

    Args:
        folder: Its place, such as ``runs/name/best``.
        state: Trained parameters and buffers.
        memory: State of the encoder snapshot of the memory; empty where there is none.
        series: What forecasting needs to know of the series; plain JSON values.
        config: The resolved configuration.
        facts: Written into the manifest: step, val_mse, dtype, backbone.
    """
    beside, old = folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")
    for leftover in (beside, old):
        shutil.rmtree(leftover, ignore_errors=True)
    beside.mkdir(parents=True)
    save_file(state, beside / "model.safetensors")
    save_file(memory, beside / "memory.safetensors")
    write_text(beside / "series.json", json.dumps(series))
    write_text(beside / "config.yaml", config_to_yaml(config))
    checksums = {name: _sha256(beside / name) for name in FILES}
    manifest = {"format": FORMAT, **facts, "sha256": checksums}
    write_text(beside / "manifest.json", json.dumps(manifest, indent=2))
    if folder.exists():
        folder.replace(old)
    beside.replace(folder)
    shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read and verify a checkpoint.

    Raises:
        CheckpointError: It is absent, incomplete, altered or of an unknown format.
    """
    manifest_file = folder / "manifest.json"
    if not manifest_file.is_file():
        raise CheckpointError(
            f"{folder}: no checkpoint here (manifest.json is missing); "
            "the run has not saved one, or the copy is incomplete."
        )
    try:
        manifest = json.loads(manifest_file.read_text(encoding="utf-8"))
        checksums = manifest["sha256"]
        known = manifest["format"] == FORMAT and set(checksums) == set(FILES)
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{manifest_file}: not a checkpoint manifest ({error}).") from error
    if not known:
        raise CheckpointError(
            f"{manifest_file}: format {manifest['format']} is not known to this version, "
            f"which reads format {FORMAT}."
        )
    for name, expected in checksums.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{path}: missing; copy the whole checkpoint folder.")
        if _sha256(path) != expected:
            raise CheckpointError(f"{path}: altered since it was saved (checksum differs).")
    try:
        state = load_file(folder / "model.safetensors")
        memory = load_file(folder / "memory.safetensors")
        series = json.loads((folder / "series.json").read_text(encoding="utf-8"))
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(f"{folder}: cannot be read: {error}") from error
    return Checkpoint(folder=folder, state=state, memory=memory, series=series, manifest=manifest)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
