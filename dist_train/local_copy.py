"""Copies of what a run reads, on the node's own disk: for file systems that many ranks wait for.

``launch/stage.py`` makes them below the folder that ``TIMELLM_LOCAL_COPY`` names, before the ranks
start; a rank reads the copy where there is one, and the original elsewhere. The configuration
keeps the original's path, so that the run can be resumed and scored without the copies.
"""

import fcntl
import hashlib
import os
import shutil
from pathlib import Path

VARIABLE = "TIMELLM_LOCAL_COPY"


def find(path: Path) -> Path:
    """The copy of a file or folder on this node; the path itself where there is none.

    A file that has changed since it was copied, by size or time, has none.
    """
    place = _place(path)
    if place is None or not place.exists():
        return path
    if path.is_file():
        original, copied = path.stat(), place.stat()
        if (original.st_size, original.st_mtime_ns) != (copied.st_size, copied.st_mtime_ns):
            return path
    return place


def make(path: Path) -> Path:
    """Copy a file or folder to this node, once for all of its processes.

    Returns:
        The copy; what lay there already is left as it is, if it still fits.

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


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
