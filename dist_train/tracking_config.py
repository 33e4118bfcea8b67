"""Settings of what a run shows while it goes on, and where that goes. Free of torch.

None of them decides a number: a run that is resumed may have others.
"""

from dataclasses import dataclass, field
from typing import Literal

WandbMode = Literal["auto", "online", "offline", "disabled"]

LONGEST_TAG = 64
"""Characters; wandb refuses longer ones."""


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """What a run shows while it goes on; metrics.jsonl is written in any case."""

    wandb_mode: WandbMode = "auto"
    """auto: what WANDB_MODE says, else online where a key of wandb is found, else offline;
    offline: into the run's folder, for wandb sync; disabled: no wandb."""

    project: str | None = None
    """Project of wandb; default WANDB_PROJECT, else timellm-enhanced."""

    entity: str | None = None
    """User or team of wandb; default WANDB_ENTITY, else that of the key."""

    group: str | None = None
    """Runs that belong together; default WANDB_RUN_GROUP, else the Slurm array, if it is one."""

    job_type: str | None = None
    """What kind of run it is; default WANDB_JOB_TYPE, else the grid of an array, else train."""

    tags: list[str] = field(default_factory=list)
    """Words to find the run by."""

    notes: str | None = None
    """What the run is about, for those who find it later."""

    histograms_every: int = 100
    """Optimizer steps between histograms of gate, match, classes and distances; 0: none."""

    panel_windows: int = 3
    """Validation windows whose forecast is drawn at each validation, for wandb; 0: none."""

    checkpoint_artifact: Literal["reference", "upload", "none"] = "reference"
    """What wandb gets of best/: names and checksums of its files, the files, or nothing."""

    finish_timeout_s: float = 300.0
    """Seconds at the end that an upload may take, and twice train.watchdog_s at most, for the other
    ranks wait; what is missing then is left to wandb sync."""

    quiet: bool = False
    """Print errors, warnings and the last line only; --quiet is short for it."""

    def __post_init__(self) -> None:
        for key in ("histograms_every", "panel_windows"):
            if getattr(self, key) < 0:
                raise ValueError(
                    f"tracking.{key} must not be negative, got {getattr(self, key)}: 0 is off."
                )
        if not self.finish_timeout_s > 0:
            raise ValueError(
                f"tracking.finish_timeout_s must be positive, got {self.finish_timeout_s}."
            )
        for tag in self.tags:
            if not 1 <= len(tag) <= LONGEST_TAG:
                raise ValueError(
                    f"tracking.tags={tag!r:.80}: wandb takes tags of 1 to {LONGEST_TAG} signs; "
                    "shorten it."
                )
        for key in ("project", "entity", "group", "job_type"):
            value = getattr(self, key)
            if value is not None and (not value or any(sign in value for sign in "/\\#?%:")):
                raise ValueError(
                    f"tracking.{key}={value!r}: wandb takes no empty name, and none with one of "
                    "/ \\ # ? % : in it; choose another."
                )
