"""A trained run as a folder to hand on, and back: it needs neither the run nor its data.

config.json               settings, and facts: format, backbone, series with their scalers
model.safetensors         trained weights, anchor, thresholds
calibration.safetensors   what intervals are made from, where the run has it
memory/                   keys, histories and their dates, where the run has a memory
backbone/                 the layers kept of the language model, where asked for
README.md                 the card
manifest.json             written last: the checksum of each file, and of itself
"""

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dist_train import calibration, run_folder
from dist_train.checkpoint import CheckpointError, load_checkpoint
from dist_train.config import ConfigError, RunConfig, config_from_dict, config_to_dict
from dist_train.data.source_files import name_of
from dist_train.exported_memory import read_memory, write_memory
from dist_train.licences import backbone_licence
from dist_train.loading import LoadedRun, assemble, check_backbone, load_run
from dist_train.model_card import write_card
from dist_train.precision import DTYPES, dtype_name
from memory_index.atomic_file import sha256_of, sync_folder, write_tensors, write_text
from memory_index.manifest import checksum_of
from model.backbone_files import BackboneFiles, fingerprint, locate_backbone
from model.backbone_loading import save_kept_layers

FORMAT = 1
KIND = "timellm-enhanced"
CARD = "README.md"


def open_run(
    folder: Path,
    root: str | None = None,
    backbone: str | None = None,
    *,
    needs_data: bool = False,
) -> LoadedRun:
    """Load the folder of a run, or an exported one.

    Args:
        folder: Which.
        root: Folder of the catalog's files, instead of the run's ``data.root``.
        backbone: Where the language model of an exported one lies here; None: where it did.
        needs_data: The series it was trained on will be read.

    Raises:
        CheckpointError: It is neither, or damaged, or its backbone is not the one found here.
        ConfigError: It needs its data, and an exported one does not know where they lie.
    """
    if is_export(folder):
        return load_export(folder, backbone, root, needs_data=needs_data)
    return load_run(folder, root)


def is_export(folder: Path) -> bool:
    """Whether a folder is an exported one, whole or damaged."""
    return (folder / "config.json").is_file() or (folder / "model.safetensors").is_file()


def export_run(
    folder: Path, out: Path, *, root: str | None = None, include_backbone: bool = False
) -> Path:
    """Export a finished run; see :func:`export`.

    Args:
        folder: Of the run.
        out: A new folder.
        root: Folder of the catalog's files, for a run with a memory.
        include_backbone: As :func:`export`.

    Raises:
        CheckpointError: There is no run, or it has not finished.
    """
    _check_is_new(out, f"--out {out}")
    if folder.is_dir() and not is_export(folder) and run_folder.find_result(folder) is None:
        raise CheckpointError(
            f"--run {folder}: not a finished run (it has no {run_folder.RESULT_FILE}): finish it "
            "with timellm train --resume auto, then export it."
        )
    return export(open_run(folder, root), folder, out, include_backbone=include_backbone)


def export(
    run: LoadedRun,
    source: Path,
    out: Path,
    *,
    include_backbone: bool = False,
    told: str | None = None,
) -> Path:
    """Write a folder from which a run is loaded without itself, its data and the training stack.

    Written beside its place and renamed.

    Args:
        run: Loaded from ``source``; its weights may have been trained on since.
        source: Folder of the run, or an exported one.
        out: A new folder.
        include_backbone: Copy the kept layers of the language model too; else it has to be where
            the folder is loaded.
        told: How the user named ``out``, for errors; None: as ``--out``.

    Returns:
        ``out``.

    Raises:
        CheckpointError: ``out`` holds something.
    """
    told = told or f"--out {out}"
    place = out.resolve()  # a link is not renamed over
    _check_is_new(place, told)
    place.parent.mkdir(parents=True, exist_ok=True)
    # Of this export alone: another one to the same place, or a folder of the user's, is left be.
    with tempfile.TemporaryDirectory(prefix=f".{place.name}.", dir=place.parent) as beside:
        made = Path(beside) / "made"  # the folder around it is for this user alone, it is not
        made.mkdir()
        _write(run, source, made, include_backbone)
        try:
            made.replace(place)  # an empty folder at that place is taken over
        except OSError:
            _check_is_new(place, told)  # something has come there meanwhile
            raise
    sync_folder(place.parent)
    return out


def load_export(
    folder: Path,
    backbone: str | None = None,
    root: str | None = None,
    *,
    needs_data: bool = False,
) -> LoadedRun:
    """Load an exported folder.

    Args:
        folder: Which.
        backbone: Where the language model lies here; None: where it did, or in the folder.
        root: Folder of the catalog's files; the folder does not say where they lay.
        needs_data: As in :func:`open_run`.

    Raises:
        CheckpointError: A file is missing or altered, or the backbone is not the one it was
            trained with.
        ConfigError: As in :func:`open_run`.
    """
    _verify(folder)
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config = config_from_dict(content["config"], folder / "config.json")
        told, series = content["backbone"], content["series"]
        dtype, memory = DTYPES[content["dtype"]], content["memory"]
        state = load_file(folder / "model.safetensors")
        place = folder / calibration.FILE
        known_errors = calibration.read(place) if place.is_file() else None
    except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
        raise CheckpointError(
            f"{folder}: cannot be read ({error}); export the run anew."
        ) from error
    if needs_data and (config.data.path is not None or config.data.sources):
        raise ConfigError(
            f"--data.path: {folder} is an exported model, which does not know where its data "
            f"({config.data.label}) lie; name the file to forecast with --data.path FILE."
        )
    if root is not None:
        config = replace(config, data=replace(config.data, root=root))
    if backbone is None and told["included"]:
        backbone = str(folder / "backbone")
    if backbone is not None:
        config = replace(config, backbone=replace(config.backbone, name=backbone))
    files = locate_backbone(config.backbone.name, kind=config.backbone.kind)
    check_backbone(config, files, told["fingerprint"])
    retriever = None
    if memory is not None:
        retriever = read_memory(folder / "memory", config, series, memory)
    return assemble(
        config, files, dtype, state, series, retriever=retriever, known_errors=known_errors
    )


def _write(run: LoadedRun, source: Path, folder: Path, include_backbone: bool) -> None:
    state, facts, is_changed = _weights(run, source)
    write_tensors(folder / "model.safetensors", state)
    kept_errors = None if is_changed else run.calibration
    if kept_errors is not None:
        calibration.write(folder / calibration.FILE, kept_errors)
    memory = None
    if run.retriever is not None:
        memory = write_memory(folder / "memory", run.retriever)
    files = locate_backbone(run.config.backbone.name, kind=run.config.backbone.kind)
    content = {
        "format": FORMAT,
        "model_type": KIND,
        "dtype": facts["dtype"],
        "backbone": {
            "name": run.config.backbone.name,
            "fingerprint": fingerprint(files),
            "licence": facts.get("licence") or backbone_licence(files),
            "included": include_backbone or facts.get("included", False),
        },
        "memory": memory,
        "series": run.series,
        "result": None if is_changed else facts["result"],
        "code": facts["code"],
        "config": _portable(run.config),
    }
    if content["backbone"]["included"]:
        kept = _write_backbone(run.config, files, folder / "backbone")
        content["backbone"]["fingerprint"] = fingerprint(kept)
        content["backbone"]["name"] = facts.get("name") or run.config.backbone.name
    write_text(folder / "config.json", json.dumps(content, indent=2))
    write_card(folder / CARD, content, kept_errors, is_changed)
    _seal(folder)


def _weights(run: LoadedRun, source: Path) -> tuple[dict[str, Tensor], dict[str, Any], bool]:
    """The weights to write, what else the source says, and whether they were trained on since."""
    if is_export(source):
        content = json.loads((source / "config.json").read_text(encoding="utf-8"))
        saved = load_file(source / "model.safetensors")
        backbone = content["backbone"]
        facts = {key: content[key] for key in ("dtype", "result", "code")} | {
            key: backbone[key] for key in ("licence", "included", "name")
        }
    else:
        checkpoint = load_checkpoint(source / "best")
        saved, manifest = checkpoint.model, checkpoint.manifest
        if run.checksum != manifest["sha256"]["model.safetensors"]:
            raise CheckpointError(
                f"{checkpoint.folder}: has changed since it was loaded, as that of a run that "
                "still trains does; load it again, and export that."
            )
        facts = {
            "dtype": manifest["dtype"],
            "code": manifest.get("code"),
            "result": run_folder.find_result(source),
        }
    if not run.is_changed:  # kept in float32, and computed with in the run's own type
        return saved, facts, False
    own = {name: value.cpu() for name, value in run.module.trained_state_dict().items()}
    floating = {name: v.float() if v.is_floating_point() else v for name, v in own.items()}
    return floating, facts | {"dtype": dtype_name(_dtype_of(run))}, True


def _dtype_of(run: LoadedRun) -> torch.dtype:
    return next(p.dtype for p in run.module.parameters() if p.requires_grad)


def _portable(config: RunConfig) -> dict[str, Any]:
    """The settings without the folders of this machine, which nobody else has."""
    data = replace(
        config.data,
        root=None,
        path=_name(config.data.path),
        sources=None
        if config.data.sources is None
        else [
            # Named: patterns of several folders may be alike without them.
            replace(source, path=_name(source.path), name=name_of(source))
            for source in config.data.sources
        ],
    )
    bank = replace(config.bank, path=None)
    return config_to_dict(replace(config, data=data, bank=bank, runs_dir="runs", extends=None))


def _name(path: str | None) -> str | None:
    return None if path is None else Path(path).name


def _write_backbone(config: RunConfig, files: BackboneFiles, folder: Path) -> BackboneFiles:
    save_kept_layers(config.backbone, files, folder, with_tokenizer=config.model.prompt != "none")
    return locate_backbone(str(folder), kind=config.backbone.kind)


def _check_is_new(out: Path, told: str) -> None:
    # The working directory would be replaced under the user's feet.
    if out.exists() and (not out.is_dir() or any(out.iterdir()) or out.samefile(Path.cwd())):
        raise ConfigError(f"{told}: exists already; name a new folder.")


def _seal(folder: Path) -> None:
    """Write the manifest; the folder counts as exported from then on."""
    # The card is for people, who may write into it.
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / CARD)
    checksums = {path.relative_to(folder).as_posix(): sha256_of(path) for path in paths}
    content: dict[str, Any] = {"format": FORMAT, "kind": KIND, "sha256": checksums}
    write_text(
        folder / "manifest.json",
        json.dumps({**content, "checksum": checksum_of(content)}, indent=2),
    )
    sync_folder(folder)


def _verify(folder: Path) -> None:
    """Refuse a folder in which a file is missing or altered; names it."""
    path = folder / "manifest.json"
    remedy = "copy the whole folder again, or export the run anew"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        checksum = content.pop("checksum")
        files = dict(content["sha256"])
        is_known = content["format"] == FORMAT and content["kind"] == KIND
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: not the manifest of an exported model ({error}); {remedy}."
        ) from error
    if checksum_of(content) != checksum:
        raise CheckpointError(f"{path}: altered since it was written (checksum differs); {remedy}.")
    if not is_known:
        raise CheckpointError(
            f"{path}: format {content['format']!r:.40}, this version reads {FORMAT}; {remedy}."
        )
    for name, expected in files.items():
        file = folder / name
        if not run_folder.is_inside(file, folder) or not file.is_file():
            raise CheckpointError(f"{file}: missing; {remedy}.")
        if sha256_of(file) != expected:
            raise CheckpointError(
                f"{file}: altered since it was exported (checksum differs); {remedy}."
            )
