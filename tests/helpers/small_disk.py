"""A disk that is really full."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest


@contextmanager
def small_disk(folder: Path, kib: int) -> Iterator[Path]:
    """Mount a file system of a few KiB in memory; skips the test where nobody may."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a file system cannot be mounted here: {error}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(ballast: Path, *, leaving: int = 0) -> None:
    """Write a file until the disk is full, and make it shorter by ``leaving`` bytes."""
    size = 0
    with ballast.open("wb", buffering=0) as file:
        for chunk in (2**20, 2**12, 1):
            with suppress(OSError):
                while True:
                    size += file.write(b"\0" * chunk)
        file.truncate(max(0, size - leaving))
