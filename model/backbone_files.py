"""Find a language model on disk, and read what it is, before torch is imported.

``python -m model.backbone_files fetch`` downloads and converts the embedded backbone once, so
that a later start needs no network.
"""

import contextlib
import hashlib
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from model.config import BackboneKind
from model.embedded_backbone import EMBEDDED_NAME, EMBEDDED_SHA256, fetch_embedded_backbone

_LAYER_KEYS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_WIDTH_KEYS = ("hidden_size", "n_embd", "d_model", "dim")
_MIB = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class BackboneFiles:
    """Where a language model lies, and what its configuration says."""

    name: str
    """``backbone.name`` as the user wrote it."""

    kind: Literal["embedded", "folder", "gguf", "hub"]
    """embedded: converted from the wheel; folder and gguf: the user's; hub: the Hub's cache."""

    folder: Path
    """Folder of the model; of a .gguf file, the folder it lies in."""

    gguf_file: str | None
    """Name of the .gguf file in ``folder``; None for safetensors."""

    config: dict[str, Any]
    """Content of config.json; for a .gguf file its metadata under the same names."""

    num_layers: int
    """Blocks the model has."""

    d_llm: int
    """Hidden width."""

    model_type: str
    """Architecture, as Transformers calls it."""

    @property
    def weight_files(self) -> list[Path]:
        """The files that hold weights, by name."""
        if self.gguf_file is not None:
            return [self.folder / self.gguf_file]
        return sorted(self.folder.glob("*.safetensors"))


def locate_backbone(name: str, *, kind: BackboneKind = "pretrained") -> BackboneFiles:
    """Find a backbone by name; downloads it where that is possible and it is not here yet.

    Args:
        name: ``smollm2-135m``, a folder, a .gguf file, or a Hugging Face hub name.
        kind: ``backbone.kind``; random needs no weights, the configuration is enough.

    Returns:
        The files. Nothing of the weights has been read.

    Raises:
        ValueError: Nothing usable is there under this name; says what to do.
    """
    path = Path(name).expanduser()
    if name == EMBEDDED_NAME:
        return _describe(name, "embedded", fetch_embedded_backbone(), kind)
    if path.suffix == ".gguf":
        return _describe_gguf(name, path)
    if path.is_dir():
        return _describe(name, "folder", path.resolve(), kind)
    return _describe(name, "hub", _find_on_hub(name, kind), kind)


def check_layers(files: BackboneFiles, llm_layers: int) -> None:
    """Refuse to keep more blocks than the model has (Transformers would add random ones).

    Raises:
        ValueError: ``llm_layers`` is more than the model has; says how many it has.
    """
    if llm_layers > files.num_layers:
        raise ValueError(
            f"backbone.llm_layers={llm_layers}: {files.name} has {files.num_layers} layers; "
            f"use at most {files.num_layers}."
        )


def fingerprint(files: BackboneFiles) -> str:
    """Identify a backbone quickly: its configuration, and each weight file's ends.

    Returns:
        A sha256 in hex. The embedded backbone's does not depend on which version of
        Transformers converted it.
    """
    if files.kind == "embedded":
        return hashlib.sha256(f"{EMBEDDED_NAME}:{EMBEDDED_SHA256}".encode()).hexdigest()
    digest = hashlib.sha256(json.dumps(files.config, sort_keys=True).encode())
    for path in files.weight_files:
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}".encode())
        with path.open("rb") as file:
            digest.update(file.read(_MIB))
            file.seek(max(0, size - _MIB))
            digest.update(file.read(_MIB))
    return digest.hexdigest()


def _find_on_hub(name: str, kind: BackboneKind) -> Path:
    """Find a hub name in the Hub's cache, else download it unless the machine is offline."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    refused = f"backbone.name={name}: not a folder, not in the Hugging Face cache"
    remedy = "give a folder with config.json and safetensors, a .gguf file, or smollm2-135m"
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise ValueError(f"{refused}, and not a hub name either: {remedy}.")
    patterns = ["*.json", "*.txt", "*.model", "*.jinja"]
    patterns += ["*.safetensors"] if kind != "random" else []
    with contextlib.suppress(LocalEntryNotFoundError, HFValidationError):
        folder = Path(snapshot_download(name, allow_patterns=patterns, local_files_only=True))
        complete = kind == "random" or any(folder.glob("*.safetensors"))
        if complete and (folder / "config.json").is_file():
            return folder
    if constants.HF_HUB_OFFLINE:
        raise ValueError(
            f"{refused}, and HF_HUB_OFFLINE forbids downloading it: {remedy}, or download it "
            f"where there is a network (`hf download {name}`)."
        )
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{refused}, and the Hub does not give it ({reason}): {remedy}.") from None


def _describe(
    name: str, kind: Literal["embedded", "folder", "hub"], folder: Path, weights: BackboneKind
) -> BackboneFiles:
    """Read config.json and check that what it says can be used."""
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"backbone.name={name}: {folder} has no config.json: give the folder that "
            "save_pretrained wrote."
        )
    config = _read_json(folder / "config.json", name)
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        _check_shards(index, name)
    if "auto_map" in config:
        raise ValueError(
            f"backbone.name={name}: its config.json asks for code from its own folder (auto_map), "
            "which is never run: if Transformers knows the architecture itself, copy the folder "
            "and delete auto_map there, else choose another backbone."
        )
    if config.get("is_encoder_decoder"):
        raise ValueError(
            f"backbone.name={name}: {config.get('model_type')} is an encoder-decoder: choose a "
            "decoder (GPT-2, LLaMA, Qwen, Mistral) or an encoder (BERT)."
        )
    if weights != "random" and not any(folder.glob("*.safetensors")):
        raise ValueError(
            f"backbone.name={name}: {folder} has no .safetensors file: other formats are not read; "
            "save the model with Transformers' save_pretrained, or set backbone.kind=random."
        )
    return BackboneFiles(
        name=name,
        kind=kind,
        folder=folder,
        gguf_file=None,
        config=config,
        num_layers=_first_of(config, _LAYER_KEYS, name),
        d_llm=_first_of(config, _WIDTH_KEYS, name),
        model_type=str(config.get("model_type", "")),
    )


def _read_json(path: Path, name: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(
            f"backbone.name={name}: {path} cannot be read as JSON ({error}): restore it."
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"backbone.name={name}: {path} must hold a JSON object: restore it.")
    return content


def _check_shards(index: Path, name: str) -> None:
    """Refuse weights outside the folder: they would be no part of the fingerprint."""
    shards = _read_json(index, name).get("weight_map", {})
    for shard in shards.values() if isinstance(shards, dict) else [shards]:
        if not isinstance(shard, str) or Path(shard).name != shard or shard in ("", ".", ".."):
            raise ValueError(
                f"backbone.name={name}: {index} names {shard!r:.80}, which is no file of this "
                "folder: save the model with Transformers' save_pretrained."
            )


def _first_of(config: dict[str, Any], keys: tuple[str, ...], name: str) -> int:
    for key in keys:
        if isinstance(config.get(key), int) and config[key] > 0:
            return int(config[key])
    raise ValueError(
        f"backbone.name={name}: config.json has none of {', '.join(keys)}: choose a plain text "
        "model."
    )


def _describe_gguf(name: str, path: Path) -> BackboneFiles:
    """Read the metadata of a .gguf file; its tensors are mapped, not read."""
    if not path.is_file():
        raise ValueError(f"backbone.name={name}: there is no such file: check the path.")
    from gguf import GGUFReader

    try:
        fields = GGUFReader(path).fields
        architecture = str(fields["general.architecture"].contents())
        num_layers = int(fields[f"{architecture}.block_count"].contents())
        d_llm = int(fields[f"{architecture}.embedding_length"].contents())
    except (
        KeyError, ValueError, IndexError, TypeError, OverflowError, MemoryError, RecursionError,
        OSError,
    ) as error:  # fmt: skip
        raise ValueError(
            f"backbone.name={name}: not a readable GGUF language model ({error}): convert it "
            "again, or give a folder with config.json and safetensors."
        ) from None
    path = path.resolve()
    return BackboneFiles(
        name=name,
        kind="gguf",
        folder=path.parent,
        gguf_file=path.name,
        config={
            "model_type": architecture,
            "num_hidden_layers": num_layers,
            "hidden_size": d_llm,
        },
        num_layers=num_layers,
        d_llm=d_llm,
        model_type=architecture,
    )


def main(arguments: list[str]) -> int:
    """Run ``fetch``: print one line with the folder of the embedded backbone.

    Returns:
        The exit status: 0, 1 when it cannot be had, 2 for another command.
    """
    if arguments != ["fetch"]:
        print("usage: python -m model.backbone_files fetch", file=sys.stderr)
        return 2
    try:
        folder = fetch_embedded_backbone()
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{EMBEDDED_NAME}: {folder}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
