"""What a Linux client of NFS does otherwise than a local disk; a container can mount none."""

import errno
import os
import time
from pathlib import Path
from typing import Any

import pytest


def keep_open_files(patch: pytest.MonkeyPatch) -> None:
    """Let a file that is deleted while open or mapped stay as ``.nfs...`` until it is closed.

    Source: nfs_sillyrename in fs/nfs/unlink.c.
    """
    unlink = os.unlink

    def unlinking(path: Any, *, dir_fd: int | None = None) -> None:
        found = os.stat(path, dir_fd=dir_fd, follow_symlinks=False)
        if not _is_used(found.st_ino):
            return unlink(path, dir_fd=dir_fd)
        if Path(path).name.startswith(".nfs"):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(path))
        kept = Path(path).with_name(f".nfs{found.st_ino:016x}")
        return os.rename(path, kept, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)

    patch.setattr(os, "unlink", unlinking)


def _is_used(inode: int) -> bool:
    for handle in Path("/proc/self/fd").iterdir():
        try:
            if os.fstat(int(handle.name)).st_ino == inode:
                return True
        except OSError:
            continue
    maps = Path("/proc/self/maps").read_text().splitlines()
    return any(line.split()[4] == str(inode) for line in maps)


def remember_what_is_not_there(patch: pytest.MonkeyPatch, below: Path, seconds: float) -> None:
    """Believe for a while that a name is not there once it was not: acdirmin of nfs(5).

    To make it is asked of the server, who brings to light that it is there.
    """
    absent: dict[str, float] = {}
    stat, access, mkdir, open_ = os.stat, os.access, os.mkdir, os.open

    def look(path: Any) -> str:
        name = "" if isinstance(path, int) else os.fspath(path)
        for other, since in absent.items():
            if (name == other or name.startswith(f"{other}/")) and (
                time.monotonic() - since < seconds
            ):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        return str(name)

    def stating(path: Any, *given: Any, **named: Any) -> os.stat_result:
        name = look(path)
        try:
            return stat(path, *given, **named)
        except FileNotFoundError:
            if name.startswith(str(below)):
                absent[name] = time.monotonic()
            raise

    def accessing(path: Any, *given: Any, **named: Any) -> bool:
        try:
            look(path)
        except FileNotFoundError:
            return False
        return access(path, *given, **named)

    def making(path: Any, *given: Any, **named: Any) -> None:
        look(Path(path).parent)
        absent.pop(os.fspath(path), None)
        mkdir(path, *given, **named)

    def opening(path: Any, *given: Any, **named: Any) -> int:
        look(path)
        return open_(path, *given, **named)

    for name, replaced in (
        ("stat", stating), ("access", accessing), ("mkdir", making), ("open", opening),
    ):  # fmt: skip
        patch.setattr(os, name, replaced)
