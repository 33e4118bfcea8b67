"""Hostile manifests of banks."""

import contextlib
import hashlib
import io
import json
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from dist_train.bank_command import info
from memory_index.loading import check_manifest
from memory_index.manifest import FILE_NAME, ManifestError, StaleMemoryError, version_of
from memory_index.store import BankFolder
from tests.fuzz.bounds import Reader
from tests.fuzz.mutations import as_json, spoilt_bytes, spoilt_json
from tests.memory_index.banks import build, plan_of

VERSION = version_of(plan_of("flat").identity)


@cache
def whole_files() -> dict[str, bytes]:
    """The files of a small bank, by name."""
    with tempfile.TemporaryDirectory() as root:
        folder = build(Path(root), plan_of("flat"))
        return {path.name: path.read_bytes() for path in folder.path.iterdir()}


def signed(content: dict[str, Any]) -> dict[str, Any]:
    """A manifest with the checksum that belongs to it, whatever it holds."""
    rest = {name: value for name, value in content.items() if name != "checksum"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    return {**rest, "checksum": hashlib.sha256(text.encode()).hexdigest()}


@cache
def inputs() -> st.SearchStrategy[bytes]:
    whole = whole_files()[FILE_NAME]
    content = json.loads(whole)
    escapes = st.sampled_from(["../x", "/etc/passwd", "a/b", "..", "", "a\\b", "a\0", FILE_NAME])
    return (
        st.binary(max_size=200)
        | spoilt_bytes(whole)
        | spoilt_json(content).map(as_json)
        | spoilt_json(content).map(signed).map(as_json)
        | escapes.map(lambda name: as_json(signed({**content, "files": {name: "0" * 64}})))
        | st.sampled_from((b"[" * 100_000, b'{"a":' * 100_000, b"\xef\xbb\xbf" + whole))
        | st.just(whole.decode().encode("utf-16"))
    )


def write(folder: Path, data: bytes) -> Path:
    bank = folder / VERSION
    bank.mkdir(exist_ok=True)
    for name, whole in whole_files().items():
        (bank / name).write_bytes(whole)
    (bank / FILE_NAME).write_bytes(data)
    return bank / FILE_NAME


def read(path: Path) -> None:
    plan = plan_of("flat")
    folder = BankFolder(path.parent.parent, path.parent.name)
    check_manifest(folder.open(), plan, folder)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(ManifestError):
        info(path.parent, None, verify=False)
    with contextlib.redirect_stdout(io.StringIO()):
        info(path.parent, None, verify=True)


READER = Reader(
    name="manifest",
    read=read,
    refusals=(ManifestError, StaleMemoryError),
    words=lambda path: (str(path.parent),),
)
