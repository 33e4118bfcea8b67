"""The manifest of a bank on disk: what it is, and the checksum of every file.

It is written last, so a folder without one is not a bank; it carries a checksum of itself.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, get_origin, get_type_hints

from memory_index.atomic_file import write_text

FORMAT = 1
FILE_NAME = "manifest.json"


class ManifestError(ValueError):
    """A bank on disk is absent, incomplete, altered, or another one than expected."""


class StaleMemoryError(ValueError):
    """The keys of a bank were made by another encoder than the one that searches it."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a bank on disk is."""

    identity: dict[str, Any]
    """All that its content depends on; the version is its hash."""

    fingerprint: str
    """Of the encoder that made the keys."""

    num_entries: int
    width: int
    """Width of a key."""

    kind: str
    nlist: int
    metric: str
    created: str
    """UTC, ISO 8601."""

    build_s: float
    ranks: int
    """Ranks that built it; any number can load it."""

    files: dict[str, str]
    """SHA-256 by file name."""


def version_of(identity: dict[str, Any]) -> str:
    """Name of the folder of a bank: equal identities, equal names."""
    return checksum_of(identity)[:16]


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write ``manifest.json``; the folder counts as a bank from then on."""
    content = {"format": FORMAT, **asdict(manifest)}
    checksum = checksum_of(content)
    write_text(folder / FILE_NAME, json.dumps({**content, "checksum": checksum}, indent=2))


def read_manifest(folder: Path) -> Manifest:
    """Read and verify the manifest of a bank.

    Raises:
        ManifestError: There is none, it is altered, or its format is unknown.
    """
    path = folder / FILE_NAME
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise ManifestError(f"{path}: not a file; build the bank anew.")
        content = json.loads(path.read_bytes())
        checksum = content.pop("checksum")
        actual = checksum_of(content)
    except OSError as error:
        raise ManifestError(
            f"{folder}: no bank here ({FILE_NAME} cannot be read: {error.strerror}); build it, "
            "or copy the whole folder."
        ) from error
    except ManifestError:
        raise
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise ManifestError(f"{path}: not a bank's manifest ({error}); build it anew.") from error
    if actual != checksum:
        raise ManifestError(f"{path}: altered since it was written; build the bank anew.")
    if content.pop("format", None) != FORMAT or not _fits(content):
        raise ManifestError(
            f"{path}: a format that this version does not know, it reads format {FORMAT}; "
            "build the bank anew."
        )
    outside = [name for name in content["files"] if not _is_plain(name)]
    if outside:
        raise ManifestError(
            f"{path}: lists {outside[0]!r:.80}, which is no name of a file in its own folder; "
            "build the bank anew."
        )
    return Manifest(**content)


def _fits(content: dict[str, Any]) -> bool:
    """Whether the names are those of a manifest, and each value of its type."""
    types = get_type_hints(Manifest)
    return (
        set(content) == set(types)
        and all(isinstance(content[name], get_origin(kind) or kind) for name, kind in types.items())
        and _is_time(content["created"])
    )


def _is_plain(name: object) -> bool:
    """Whether a name stays in the folder that it is looked for in."""
    return (
        isinstance(name, str)
        and name not in ("", ".", "..", FILE_NAME)
        and not any(sign in name for sign in "/\\\0")
    )


def _is_time(text: str) -> bool:
    try:
        return datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        return False


def checksum_of(content: dict[str, Any]) -> str:
    """SHA-256 of plain JSON values, whatever the order and the spaces that they are written in."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
