"""Seeds, and what is needed to tell whether two runs ran the same thing."""

import hashlib
import platform
import random
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

PACKAGES = ("dist_train", "model", "memory_index")


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch (all devices), the same on every rank."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_state() -> dict[str, "Tensor"]:
    """State of this process's generators (Python, numpy, torch, its GPU), as tensors."""
    import numpy as np
    import torch

    version, inner, gauss = random.getstate()
    numbers = np.random.get_state(legacy=False)
    assert isinstance(numbers, dict)
    assert (version, gauss, numbers["has_gauss"]) == (3, None, 0)  # nobody asks them here
    inside = numbers["state"]
    state = {
        "python": torch.tensor(inner, dtype=torch.int64),
        "numpy": torch.tensor([*inside["key"].tolist(), inside["pos"]], dtype=torch.int64),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(state: Mapping[str, "Tensor"]) -> None:
    """Put the generators where :func:`random_state` found them."""
    import numpy as np
    import torch

    random.setstate((3, tuple(state["python"].tolist()), None))
    *keys, place = state["numpy"].tolist()
    np.random.set_state(("MT19937", np.array(keys, dtype=np.uint32), place, 0, 0.0))
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])


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
