"""Copies of what a run reads, on the node's own disk: for file systems that many ranks wait for.

``launch/stage.py`` makes them below the folder that ``TIMELLM_LOCAL_COPY`` names, before the ranks
start; a rank reads the copy where there is one that still fits, and the original elsewhere. The
configuration keeps the original's path, so that the run can be resumed and scored without copies.
"""

import fcntl
import hashlib
import os
import shutil
from pathlib import Path

VARIABLE = "TIMELLM_LOCAL_COPY"

SEAL = "source.json"
"""File of a built source: holds the checksum of its values."""


def find(path: Path, part: str = "") -> Path:
    """The copy of a file or folder on this node; the path itself where there is none.

    What has changed since it was copied has none: a built source whose ``source.json`` has other
    bytes, a file of another size or time, any other folder with such a file, or with a new one.

    Args:
        path: The original.
        part: Name of what is read of a folder: the rest may have changed.
    """
    place = _place(path)
    return path if place is None or not _fits(path / part, place / part) else place


def make(path: Path) -> Path:
    """Copy a file or folder to this node, once for all of its processes.

    Returns:
        The copy; one that lay there already is left as it is if it still fits, else made anew.

    Raises:
        OSError: It cannot be read, or there is no room; nothing is left behind then.
    """
    place = _place(path)
    assert place is not None, f"{VARIABLE} is not set"
    place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (place.parent / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if find(path) == place:
            return place
        beside = place.with_name(f".{place.name}.part")
        _remove(beside)
        try:
            if path.is_dir():
                # A build that goes on is no part of it.
                shutil.copytree(path, beside, ignore=shutil.ignore_patterns(".*"))
            else:
                shutil.copy2(path, beside)
            _remove(place)
            beside.rename(place)
        except BaseException:
            _remove(beside)
            raise
    return place


def _place(path: Path) -> Path | None:
    root = os.environ.get(VARIABLE)
    if not root:
        return None
    absolute = path.expanduser().resolve()
    # Two files of one name, from two folders.
    folder = hashlib.sha256(str(absolute.parent).encode()).hexdigest()[:12]
    return Path(root) / folder / absolute.name


def _fits(original: Path, copy: Path) -> bool:
    """Whether a copy is what would be copied now; nothing is raised."""
    try:
        if (original / SEAL).is_file():
            return (original / SEAL).read_bytes() == (copy / SEAL).read_bytes()
        return _holds(copy, original)
    except OSError:  # there is none, or one of the two cannot be read
        return False


def _holds(copy: Path, original: Path) -> bool:
    """Whether all that is copied of a file or folder lies in the copy, by size and time.

    The copy may hold more: what is measured of a bank is written beside it.
    """
    if original.is_dir():
        return copy.is_dir() and all(
            _holds(copy / one.name, one)
            for one in original.iterdir()
            if not one.name.startswith(".")
        )
    now, then = original.stat(), copy.stat()
    return (now.st_size, now.st_mtime_ns) == (then.st_size, then.st_mtime_ns)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
