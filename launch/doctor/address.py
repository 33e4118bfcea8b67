"""Where the ranks of a job meet, and who this rank is, as the launcher said in the environment."""

import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass

from dist_train.config import ConfigError

_TICK_S = 0.2
_DIAL_S = 5.0  # of one attempt; a packet that a firewall swallows gets no answer at all


@dataclass(frozen=True, kw_only=True)
class Place:
    """One rank's place in a job."""

    rank: int
    world_size: int
    """Ranks that the launcher announced."""

    local_rank: int
    """Number of its GPU among those that it sees."""

    address: str
    """MASTER_ADDR, where rank 0 runs."""

    port: int
    """MASTER_PORT; 0: none was given, and this rank is alone."""

    task: int | None = None
    """Number on its node where Slurm shows each task GPUs of its own; None: ``local_rank`` is."""


class UnreachableError(RuntimeError):
    """Nobody answers at an address; the message says why."""


def read_place() -> Place:
    """Read the environment; a process without a launcher is alone.

    Raises:
        ConfigError: A variable is missing, or is no number that can be.
    """
    if "RANK" not in os.environ:
        return Place(rank=0, world_size=1, local_rank=0, address="127.0.0.1", port=0)
    place = Place(
        rank=_number("RANK"),
        world_size=_number("WORLD_SIZE", least=1),
        local_rank=_number("LOCAL_RANK"),
        address=_variable("MASTER_ADDR"),
        port=_number("MASTER_PORT", least=1),
        task=_number("SLURM_LOCALID") if _has_own_gpus(os.environ) else None,
    )
    if place.port > 65535:
        raise ConfigError(f"MASTER_PORT={place.port}: a port is at most 65535; choose another.")
    return place


def _has_own_gpus(environment: Mapping[str, str]) -> bool:
    """Whether this is a task of ``srun --gpus-per-task``."""
    asked = "SLURM_GPUS_PER_TASK" in environment or "gpu" in environment.get(
        "SLURM_TRES_PER_TASK", ""
    )
    return asked and "SLURM_LOCALID" in environment


def wait_for_listener(address: str, port: int, timeout_s: float) -> None:
    """Wait until somebody listens at an address.

    Raises:
        UnreachableError: Nobody did in time; says what the last attempt met.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        left = deadline - time.monotonic()
        try:
            patience = max(_TICK_S, min(_DIAL_S, left))
            socket.create_connection((address, port), timeout=patience).close()
        except socket.gaierror as error:
            reason = f"no such host name here ({error.strerror})"
        except TimeoutError:
            reason = "no answer, as behind a firewall or on another network"
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
        else:
            return
        if time.monotonic() + _TICK_S > deadline:
            raise UnreachableError(reason)
        time.sleep(_TICK_S)


def _variable(key: str) -> str:
    value = os.environ.get(key, "")
    if not value:
        raise ConfigError(
            f"{key} is not set, and RANK is: start the ranks with deepspeed, torchrun or srun, or "
            f"set {key} too."
        )
    return value


def _number(key: str, least: int = 0) -> int:
    value = _variable(key)
    if not value.isascii() or not value.isdigit() or int(value) < least:
        raise ConfigError(f"{key}={value}: must be a whole number, {least} or more.")
    return int(value)
