"""Banks on disk: a folder of versions, each of them whole or not there.

<root>/<version>/ holds manifest.json, written last, with the checksums of all the others;
chunk_00000.safetensors and so on, codes of one run of entries each, and which of them are nearest
to a sample of queries, to measure recall by; trained.safetensors, centroids and codebook of an ivf
kind; and recall.json, what was measured, which is not part of the bank. <root>/.<version>.building/
is a build that goes on, or was killed and can go on.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from memory_index.atomic_file import (
    replacing,
    sha256_of,
    sync_folder,
    write_tensors,
    write_text,
)
from memory_index.manifest import Manifest, ManifestError, read_manifest, write_manifest
from memory_index.shared_disk import free_name, is_kept_open, make_folder, try_lock

TRAINED = "trained.safetensors"
RECALL = "recall.json"
LOCK = ".lock"


def chunk_name(chunk: int) -> str:
    """File of one chunk."""
    return f"chunk_{chunk:05d}.safetensors"


class BankFolder:
    """One version of a bank below a root."""

    def __init__(self, root: Path, version: str) -> None:
        self.root, self.version = root, version
        self.path = root / version
        self.building = root / f".{version}.building"

    @property
    def manifest(self) -> Path:
        """What is written last, and so says that a finished build lies there."""
        return self.path / "manifest.json"

    @property
    def exists(self) -> bool:
        """Whether a finished build lies there; its content is not verified yet."""
        return self.manifest.is_file()

    @contextmanager
    def locked_for_building(self) -> Iterator[None]:
        """Keep a second job from building the same bank; on the first rank of the job.

        Raises:
            ManifestError: Another job builds it right now, or nothing can be written there.
        """
        try:
            make_folder(self.building)
            handle = os.open(self.building / LOCK, os.O_CREAT | os.O_RDWR)
        except OSError as error:
            raise ManifestError(
                f"{self.building}: cannot be written ({error.strerror}); name another folder "
                "with bank.path."
            ) from error
        try:
            if not (try_lock(handle, self.building / LOCK) and self._still_holds(handle)):
                raise ManifestError(
                    f"{self.building}: another job builds this bank right now; wait for it, or "
                    "name another folder with bank.path."
                )
            yield
        finally:
            os.close(handle)  # and with it the lock

    def _still_holds(self, lock: int) -> bool:
        """Whether the build lies where it did: the job that held the lock may have published it."""
        try:
            return os.path.samestat((self.building / LOCK).stat(), os.fstat(lock))
        except FileNotFoundError:
            return False

    def write_part(self, name: str, tensors: dict[str, Tensor]) -> str:
        """Write one file of the build, whole or not at all; returns its SHA-256."""
        path = self.building / name
        with replacing(path) as beside:
            whole = {key: value.contiguous() for key, value in tensors.items()}
            write_tensors(beside, whole, {"part": _part(self.version, name)})
            return sha256_of(beside)

    def read_part(self, name: str) -> dict[str, Tensor] | None:
        """Read a file of the build; None where it is not there or belongs to something else."""
        path = self.building / name
        try:
            return _read(path, self.version, name) if path.exists() else None
        except ManifestError:
            path.unlink()  # a build that was killed by a power cut may leave a torn file
            return None

    def publish(self, manifest: Manifest) -> None:
        """Turn the build into a bank; on one rank, when all have written their parts."""
        known = {*manifest.files, "manifest.json", LOCK}
        for path in self.building.iterdir():
            if path.name not in known and not is_kept_open(path):  # of a killed build
                path.unlink()
        write_manifest(self.building, manifest)
        sync_folder(self.building)
        old = free_name(self.root / f".{self.version}.old")
        if self.path.exists():  # a damaged one, or one that bank.build=always replaces
            self.path.replace(old)
        self.building.replace(self.path)
        (self.path / LOCK).unlink(missing_ok=True)
        sync_folder(self.root)
        shutil.rmtree(old, ignore_errors=True)

    def open(self) -> Manifest:
        """Read the manifest.

        Raises:
            ManifestError: It is absent, altered, or of another bank.
        """
        return read_manifest(self.path)

    def load(self, manifest: Manifest, name: str) -> dict[str, Tensor]:
        """Read and verify one file of the bank.

        Raises:
            ManifestError: It is missing, altered, of another bank, or cannot be read; the message
                names it.
        """
        path = self.path / name
        expected = manifest.files.get(name)
        try:
            if expected is None or not path.is_file():
                raise ManifestError(
                    f"{path}: missing; copy the whole folder, or build the bank anew."
                )
            found = sha256_of(path)
        except OSError as error:
            raise ManifestError(
                f"{path}: cannot be read ({error.strerror}); build the bank anew."
            ) from error
        if found != expected:
            version, part = _owner(path) or (self.version, name)
            if version != self.version:
                raise ManifestError(
                    f"{path}: belongs to another bank ({version}, not {self.version}); copy the "
                    "right file, or build the bank anew."
                )
            if part != name:
                raise ManifestError(
                    f"{path}: is {part} under another name; copy the right file, or build the "
                    "bank anew."
                )
            raise ManifestError(
                f"{path}: altered since it was built (checksum differs); build the bank anew."
            )
        return _read(path, self.version, name)

    def read_recall(self) -> dict[str, Any] | None:
        """What was measured of it; None where nothing was, or the file is of no use."""
        try:
            content = json.loads((self.path / RECALL).read_bytes())
            curve = {int(effort): float(value) for effort, value in content["curve"].items()}
        except (OSError, ValueError, KeyError, AttributeError, TypeError):
            return None
        except (OverflowError, RecursionError):  # a number too large, lists too deep
            return None
        return {**content, "curve": curve} if curve else None

    def write_recall(self, content: dict[str, Any]) -> None:
        """Keep what was measured, beside the bank."""
        write_text(self.path / RECALL, json.dumps(content, indent=2))

    def size_gib(self) -> float:
        """GiB on disk."""
        return sum(path.stat().st_size for path in self.path.iterdir()) / 2**30

    def delete(self) -> None:
        """Remove this version, and a build of it that was not finished."""
        olds = self.root.glob(f".{self.version}.old*")
        for folder in (self.path, self.building, *olds):
            shutil.rmtree(folder, ignore_errors=True)


def versions(root: Path) -> list[str]:
    """Finished banks below a root, the newest first."""
    if not root.is_dir():
        return []
    # Names with a dot are builds that are not published yet, and banks about to be deleted.
    found = [path.parent for path in root.glob("[!.]*/manifest.json")]
    found.sort(key=lambda path: (path / "manifest.json").stat().st_mtime_ns, reverse=True)
    return [path.name for path in found]


def bank_folders(root: Path) -> list[BankFolder]:
    """Finished banks below a root, and in the folders of sources below it."""
    below = [path for path in sorted(root.glob("[!.]*")) if path.is_dir()]
    return [BankFolder(folder, name) for folder in (root, *below) for name in versions(folder)]


def _read(path: Path, version: str, name: str) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            if file.metadata() != {"part": _part(version, name)}:
                raise ManifestError(f"{path}: belongs to another bank; build the bank anew.")
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ManifestError(f"{path}: cannot be read ({error}); build the bank anew.") from error


def _part(version: str, name: str) -> str:
    """What a file says it is. One entry: safetensors writes several in an order left to chance."""
    return f"{version}/{name}"


def _owner(path: Path) -> tuple[str, str] | None:
    """Version and name that a file says are its own; None where it says nothing."""
    try:
        with safe_open(path, framework="pt") as file:
            version, slash, name = (file.metadata() or {}).get("part", "").partition("/")
    except (SafetensorError, OSError):
        return None
    return (version, name) if slash else None
