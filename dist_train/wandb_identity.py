"""Which run of wandb a run is: mode, project, group and id; and what of it must not be sent.

Without wandb itself, whose import takes seconds.
"""

import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dist_train.config import without_credentials
from dist_train.tracking_config import TrackingConfig
from memory_index.atomic_file import write_text

ID_FILE = "wandb_id"
DEFAULT_PROJECT = "timellm-enhanced"

_SECRET = re.compile(
    r"(^|_)(secret|password|passwd|api_?key|credentials?|([a-z]+_)?token)$", re.IGNORECASE
)


def project_of(tracking: TrackingConfig, environment: Mapping[str, str]) -> str:
    """The project of wandb that runs of a configuration go to."""
    return tracking.project or environment.get("WANDB_PROJECT") or DEFAULT_PROJECT


def wanted_mode(asked: str, environment: Mapping[str, str]) -> str:
    """What ``tracking.wandb_mode`` means: as asked, or what WANDB_MODE says.

    Returns:
        online, offline or disabled; or auto, which a key decides.
    """
    if asked != "auto":
        return asked
    told = environment.get("WANDB_MODE", "")
    return {"dryrun": "offline", "run": "online"}.get(told, told) or "auto"


def run_id(folder: Path) -> str:
    """The run's id; made where there is none yet, and kept.

    Raises:
        OSError: It cannot be written.
    """
    file = folder / ID_FILE
    try:
        known = file.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        known = ""
    if re.fullmatch(r"[a-z0-9]{8,64}", known):
        return known
    made = secrets.token_hex(6)
    write_text(file, made + "\n")
    return made


def array_of(environment: Mapping[str, str]) -> tuple[str | None, str]:
    """Group and job type of a task of a Slurm array.

    Args:
        environment: Of the job; ``launch/slurm_array.sbatch`` sets TIMELLM_GRID.

    Returns:
        ``<grid>-<array>`` and the grid's name; without an array no group, and ``train``.
    """
    array, grid = environment.get("SLURM_ARRAY_JOB_ID"), environment.get("TIMELLM_GRID", "")
    name = Path(grid).stem or "array"
    return (f"{name}-{array}", name) if array else (None, "train")


def redacted(value: Any, key: str = "") -> Any:
    """Leave out what sounds like a secret by its key, and passwords of addresses."""
    if isinstance(value, Mapping):
        return {name: redacted(inner, str(name)) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [redacted(inner, key) for inner in value]
    if isinstance(value, str):
        return "***" if _SECRET.search(key) else without_credentials(value)
    return value
