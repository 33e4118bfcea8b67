"""What the doctor takes on its command line besides a run's configuration."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from math import isfinite
from typing import Any

from dist_train.config import (
    ConfigError,
    RunConfig,
    add_resume_arguments,
    build_parser,
    parse_run_config,
)

CHECKS = (
    "inputs", "packages", "libraries", "devices", "host", "disk", "wandb", "clocks", "folder",
    "speed", "links",
)  # fmt: skip
"""What can be left out, in the order of the table."""


@dataclass(frozen=True, kw_only=True)
class DoctorOptions:
    """How to look; what to look at is a run's configuration."""

    world_size: int | None = None
    """Ranks that the job is to have; None: as many as the launcher announces."""

    timeout_s: float = 60.0
    """Seconds that any wait lasts at most."""

    size_mib: tuple[float, ...] = (64.0,)
    """Sizes of the messages whose exchange is timed, in MiB."""

    write_mib: float = 64.0
    """Size of the file that is written to time the disk, in MiB."""

    free_gib: float = 1.0
    """Space that the disk of the run's folder must have, in GiB."""

    skip: tuple[str, ...] = ()
    """Names of :data:`CHECKS` that are left out."""

    json: bool = False
    """Whether the last line printed is JSON."""

    def __post_init__(self) -> None:
        if self.world_size is not None and self.world_size < 1:
            raise ConfigError(f"--world_size must be at least 1, got {self.world_size}.")
        sizes = {"--size_mib": min(self.size_mib), "--write_mib": self.write_mib}
        for key, value in {"--timeout_s": self.timeout_s, **sizes}.items():
            if not (isfinite(value) and value > 0):
                raise ConfigError(f"{key} must be a positive number, got {value}.")
        if not (isfinite(self.free_gib) and self.free_gib >= 0):
            raise ConfigError(f"--free_gib must not be negative, got {self.free_gib}.")


def build_doctor_parser() -> Any:
    """Make the parser of the command line, of jsonargparse."""
    parser = build_parser("timellm doctor")
    parser.description = (
        "Look at machines, ranks, data and backbone before a job does: one row per check, with a "
        "remedy. Alone, or on every rank: torchrun --nproc_per_node 2 -m launch.doctor. "
        "Exit codes: 0 well (there may be warnings), 1 a check failed, 2 wrong arguments."
    )
    defaults = DoctorOptions()
    parser.add_argument(
        "--world_size", type=int, help="Ranks that the job is to have; else what is announced."
    )
    parser.add_argument(
        "--timeout_s", type=float, default=defaults.timeout_s,
        help="Seconds that any wait lasts at most: for a rank, a check or a message.",
    )  # fmt: skip
    parser.add_argument(
        "--size_mib", type=float, nargs="+", default=list(defaults.size_mib),
        help="Sizes of the messages whose exchange between ranks is timed, in MiB.",
    )  # fmt: skip
    parser.add_argument(
        "--write_mib", type=float, default=defaults.write_mib,
        help="Size of the file that is written, and deleted, to time the disk, in MiB.",
    )  # fmt: skip
    parser.add_argument(
        "--free_gib", type=float, default=defaults.free_gib,
        help="Space that the disk of the run's folder must have, in GiB.",
    )  # fmt: skip
    parser.add_argument(
        "--skip", nargs="+", choices=CHECKS, default=[], help="Checks that are left out."
    )
    parser.add_argument(
        "--json", action="store_true", help="Print one JSON object as the last line."
    )
    parser.add_argument("--local_rank", type=int, help="Given by the deepspeed launcher.")
    add_resume_arguments(parser)  # read by nobody here: the line of a training is taken as it is
    return parser


def parse(argv: Sequence[str]) -> tuple[RunConfig, DoctorOptions]:
    """Read a command line.

    Raises:
        ConfigError: It cannot be used; the message names key, value and remedy.
    """
    config, further = parse_run_config(build_doctor_parser(), argv)
    known = {item.name for item in fields(DoctorOptions)}
    values = {key: value for key, value in further.items() if key in known}
    lists = {key: tuple(values[key]) for key in ("size_mib", "skip")}
    return config, DoctorOptions(**values | lists)
