"""What network file systems do otherwise than a local disk: NFS above all, Lustre, FUSE mounts."""

import errno
import fcntl
import os
import shutil
import sys
import time
from pathlib import Path

# A client of NFS may trust for this long that a name is not there (acdirmax of nfs(5)).
PATIENCE_S = 60.0

_HELD = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK)
_said: set[str] = set()


def try_lock(handle: int, path: Path, *, shared: bool = False) -> bool:
    """Lock an open file unless another process holds it; the lock ends with the handle.

    Where the file system knows no locks (Lustre that is mounted without ``flock``), this is said
    once, and the work goes on without: two jobs in one folder are not told from one then.

    Args:
        handle: Of the open file.
        path: Of the same file, for the warning.
        shared: Others may hold it in the same way.

    Returns:
        False where another process holds it.

    Raises:
        OSError: Anything else.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _HELD:
            return False
        if error.errno not in _NO_LOCKS:
            raise
        folder = str(path.parent)
        if folder not in _said:
            _said.add(folder)
            sys.stderr.write(
                f"warning: {folder}: this file system has no locks ({error.strerror}); nothing "
                "keeps a second job out of it.\n"
            )
    return True


def is_kept_open(path: Path) -> bool:
    """Whether a name is that of a file which was deleted while open: it goes when that ends.

    A client of NFS keeps such a file under this name, and refuses to delete it (EBUSY).
    """
    return path.name.startswith(".nfs")


def make_folder(path: Path) -> None:
    """Make a folder, or find it made by another node, whatever was seen of it before.

    To make what is there is refused by the server, and so brings to light what a client of NFS
    believes is not there.

    Raises:
        OSError: It cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        if not (appears(path) and path.is_dir()):
            raise


def free_name(path: Path) -> Path:
    """Delete a folder whose name is wanted; where it does not go, another name beside it.

    It stays where a file of it is kept open, see :func:`is_kept_open`.
    """
    free, number = path, 0
    shutil.rmtree(free, ignore_errors=True)
    while os.path.lexists(free):
        number += 1
        free = path.with_name(f"{path.name}.{number}")
        shutil.rmtree(free, ignore_errors=True)
    return free


def appears(path: Path) -> bool:
    """Whether a path is there, or comes to be seen within :data:`PATIENCE_S`."""
    deadline, pause_s = time.monotonic() + PATIENCE_S, 0.05
    while not path.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, 1.0)
    return True
