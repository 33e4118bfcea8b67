"""The doctor on several ranks, each of which may be ill in its own way."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from dist_train.config import RunConfig
from launch.doctor.check import Visit
from launch.doctor.meeting import Arrival
from launch.doctor.options import CHECKS, DoctorOptions
from launch.doctor.report import Report
from tests.helpers.jobs import ROOT, Ended, free_port

_LAUNCHED = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "GROUP_RANK"}


@dataclass(frozen=True, kw_only=True)
class Patient:
    """One rank: what differs from the others."""

    environment: dict[str, str] = field(default_factory=dict)
    arguments: Sequence[str] = ()


class Ward:
    """The ranks of a doctor, started and not waited for; ends them all at the end of a block."""

    def __init__(self, *arguments: str, ranks: Sequence[Patient], cwd: Path = ROOT) -> None:
        self.port = free_port()
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-m", "launch.doctor", *arguments, *rank.arguments],
                cwd=cwd,
                env=self._environment(number, len(ranks)) | rank.environment,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            for number, rank in enumerate(ranks)
        ]

    def wait(self, number: int, timeout_s: float = 120) -> Ended:
        out, error = self.processes[number].communicate(timeout=timeout_s)
        return Ended(code=self.processes[number].returncode, out=out, error=error)

    def __enter__(self) -> "Ward":
        return self

    def __exit__(self, *given: object) -> None:
        for process in self.processes:
            with process:
                process.kill()

    def _environment(self, rank: int, world_size: int) -> dict[str, str]:
        own = {key: value for key, value in os.environ.items() if key not in _LAUNCHED}
        return own | {
            "RANK": str(rank),
            "WORLD_SIZE": str(world_size),
            "LOCAL_RANK": str(rank),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(self.port),
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
        }


def node(number: int, **environment: str) -> Patient:
    """The only rank of an emulated node."""
    return Patient(environment={"GROUP_RANK": str(number), "LOCAL_RANK": "0", **environment})


def examine(
    *arguments: str, ranks: Sequence[Patient], timeout_s: float = 120, cwd: Path = ROOT
) -> list[Ended]:
    """Run the doctor on every rank and wait for all of them."""
    with Ward(*arguments, ranks=ranks, cwd=cwd) as ward:
        return [ward.wait(number, timeout_s) for number in range(len(ranks))]


def only(*checks: str) -> list[str]:
    """The options that leave out all other checks."""
    return ["--skip", *(name for name in CHECKS if name not in checks)]


def rows(ended: Ended) -> dict[str, dict[str, Any]]:
    """The checks of the last line, by name; of several rows of one name the first."""
    found: dict[str, dict[str, Any]] = {}
    for row in json.loads(ended.out.splitlines()[-1])["checks"]:
        found.setdefault(row["check"], row)
    return found


def report(rank: int = 0, node: str = "a", /, **facts: Any) -> Report:
    """What a rank has found, for a judge."""
    return Report(rank=rank, node=node, facts=facts)


def arrival(rank: int = 0, node: str = "a", **changes: Any) -> Arrival:
    """A rank that came."""
    given = {"seat": rank + 1, "world_size": 2, "local_rank": 0, "pid": 100 + rank, **changes}
    return Arrival(rank=rank, node=node, **given)


def visit(config: RunConfig | None = None, **options: Any) -> Visit:
    """A visit of one rank that meets nobody."""
    meeting = SimpleNamespace(arrival=arrival(world_size=1), leads=True, publish=lambda key, value: None)
    return Visit(
        config=config or RunConfig(), options=DoctorOptions(**options), meeting=cast(Any, meeting)
    )
