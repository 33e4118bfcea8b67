"""Seeds, and what is needed to tell whether two runs ran the same thing."""

import hashlib
import platform
import random
from importlib import metadata
from pathlib import Path

PACKAGES = ("dist_train", "model", "memory_index")


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch (all devices), the same on every rank."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def code_fingerprint() -> str:
    """Hash the source of the packages; two runs with equal hashes ran the same code."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            digest.update(path.relative_to(root).as_posix().encode() + b"\0")
            digest.update(path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def environment() -> dict[str, str]:
    """Versions of what the numbers of a run depend on."""
    names = ("torch", "transformers", "deepspeed", "numpy", "pandas")
    versions = {name: metadata.version(name) for name in names}
    return {"python": platform.python_version(), "machine": platform.machine(), **versions}
