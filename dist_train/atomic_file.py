"""Files that are either absent or whole, whenever the process ends."""

import os
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Write a file so that it is either absent or whole, whenever the process ends."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    with beside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
