"""Files that are either absent or whole, whenever the process or the machine ends."""

import errno
import hashlib
import os
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Name a file beside ``path`` to write to; at the end of the block it takes its place.

    Where the block raises, ``path`` stays as it was and nothing is left beside it.

    Raises:
        OSError: It cannot be written; the error names ``path``.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield beside
        with beside.open("rb+") as file:
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        if error.filename in (None, str(beside)):  # a write that fails does not say to what
            error.filename = str(path)
        raise
    finally:
        beside.unlink(missing_ok=True)


def leftovers(folder: Path, names: Collection[str]) -> list[Path]:
    """What writers that were killed have left beside files of these names; see :func:`sweep`."""
    pattern = re.compile(rf"\.({'|'.join(map(re.escape, names))})\.\d+")
    return [path for path in folder.iterdir() if pattern.fullmatch(path.name) and path.is_file()]


def sweep(folder: Path, names: Collection[str]) -> None:
    """Delete what writers that were killed have left in a folder that nobody else writes to now.

    Args:
        folder: Where they wrote.
        names: Of the files that they wrote; hidden files of any others are somebody else's.
    """
    for path in leftovers(folder, names):
        path.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a file so that it is either absent or whole, whenever the process ends."""
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8")


def write_tensors(
    path: Path, tensors: "Mapping[str, Tensor]", metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file; not atomic.

    Args:
        path: Where to.
        tensors: What it holds.
        metadata: One entry at most where equal content must be equal bytes: safetensors writes
            several in any order.

    Raises:
        OSError: It cannot be written; safetensors has an error of its own for that.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(dict(tensors), path, metadata=metadata)
    except SafetensorError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, says that a disk or a quota is used up."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__
    return False


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
