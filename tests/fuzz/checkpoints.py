"""Hostile checkpoints: any file of them, with and without the checksum that would belong to it."""

import hashlib
import json
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st

from dist_train.checkpoint import CheckpointError, Content, load_checkpoint, save_checkpoint
from dist_train.config import RunConfig, config_to_yaml
from tests.fuzz.bounds import Reader
from tests.fuzz.mutations import as_json, spoilt_bytes, spoilt_json

MANIFEST = "manifest.json"
SELF_CHECKSUM = "manifest_sha256"


@cache
def whole_files() -> dict[str, bytes]:
    """Every file of a small checkpoint, by its path in the folder."""
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "best"
        save_checkpoint(
            folder,
            Content(
                model={"a.weight": torch.ones(2, 3), "anchor": torch.arange(4.0)},
                memory={"b": torch.ones(2)},
                optimizer={"step.a.weight": torch.ones(())},
                training={"state": {"step": 3}},
                series={"name": "x", "series": [], "description": "d", "checksum": "0" * 64},
            ),
            config=config_to_yaml(RunConfig(name="n")),
            facts={"step": 3, "val_mse": 0.5, "dtype": "fp32", "backbone": {"fingerprint": "f"}},
        )
        return {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }


def manifest_has_self_checksum() -> bool:
    """Whether the manifest carries a checksum of itself, as this version writes it."""
    return SELF_CHECKSUM in json.loads(whole_files()[MANIFEST])


def signed(content: dict[str, Any]) -> dict[str, Any]:
    """A manifest with the checksum of itself that belongs to it, whatever it holds."""
    rest = {name: value for name, value in content.items() if name != SELF_CHECKSUM}
    if not manifest_has_self_checksum():
        return rest
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    return {**rest, SELF_CHECKSUM: hashlib.sha256(text.encode()).hexdigest()}


@cache
def inputs() -> st.SearchStrategy[dict[str, bytes]]:
    """Files that take the place of the whole ones."""
    files = whole_files()
    content = json.loads(files[MANIFEST])

    def with_checksum(pair: tuple[str, bytes]) -> dict[str, bytes]:
        name, data = pair
        checksums = {**content["sha256"], name: hashlib.sha256(data).hexdigest()}
        return {name: data, MANIFEST: as_json(signed({**content, "sha256": checksums}))}

    others = [name for name in files if name != MANIFEST]
    spoilt = st.sampled_from(others).flatmap(
        lambda name: st.tuples(st.just(name), spoilt_bytes(files[name]) | st.binary(max_size=80))
    )
    deep = st.sampled_from([b"[" * 100_000, b'{"a":' * 100_000, b"9" * 5000, b"NaN", b"null"])
    texts = st.tuples(st.sampled_from([name for name in others if name.endswith(".json")]), deep)
    listed = {**content, "sha256": sorted(content["sha256"])}
    escaping = {**content, "sha256": {"../x": "0" * 64, **content["sha256"]}}
    return (
        st.binary(max_size=200).map(lambda data: {MANIFEST: data})
        | spoilt_bytes(files[MANIFEST]).map(lambda data: {MANIFEST: data})
        | deep.map(lambda data: {MANIFEST: data})
        | spoilt_json(content).map(lambda value: {MANIFEST: as_json(value)})
        | spoilt_json(content).map(signed).map(lambda value: {MANIFEST: as_json(value)})
        | st.sampled_from([listed, escaping]).map(lambda v: {MANIFEST: as_json(signed(v))})
        | spoilt.map(lambda pair: {pair[0]: pair[1]})
        | spoilt.map(with_checksum)
        | texts.map(with_checksum)
    )


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in (whole_files() | files).items():
        path = folder / "best" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder / "best" / MANIFEST


def read(path: Path) -> None:
    load_checkpoint(path.parent)


READER = Reader(
    name="checkpoint",
    read=read,
    refusals=(CheckpointError,),
    words=lambda path: (str(path.parent),),
)
