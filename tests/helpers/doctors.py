"""The doctor on several ranks, each of which may be ill in its own way."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch

from dist_train.config import RunConfig
from dist_train.launcher import RANK_VARIABLES
from launch.doctor import command
from launch.doctor.check import Visit
from launch.doctor.meeting import Arrival
from launch.doctor.options import CHECKS, DoctorOptions
from launch.doctor.report import Report
from tests.helpers.jobs import ROOT, Ended, free_port
from tests.helpers.ranks import fork_context

_LAUNCHED = {*RANK_VARIABLES, "GROUP_RANK"}


@dataclass(frozen=True, kw_only=True)
class Patient:
    """One rank: what differs from the others."""

    environment: dict[str, str] = field(default_factory=dict)
    arguments: Sequence[str] = ()


class Ward:
    """The ranks of a doctor, started and not waited for; ends them all at the end of a block."""

    def __init__(self, *arguments: str, ranks: Sequence[Patient], fresh: bool = True) -> None:
        """Start them.

        Args:
            arguments: Of all ranks.
            ranks: What differs between them.
            fresh: Whether each is an interpreter of its own, as a launcher starts them; else they
                are forks of a process that has loaded torch, and are there in no time.
        """
        self._folder = tempfile.TemporaryDirectory()
        self.processes = []
        port = free_port()
        for number, rank in enumerate(ranks):
            given = [*arguments, *rank.arguments]
            environment = _environment(number, len(ranks), port) | rank.environment
            self.processes.append(
                _Fresh(given, environment, self._files(number))
                if fresh
                else _Fork(given, environment, self._files(number))
            )

    def wait(self, number: int, timeout_s: float = 120) -> Ended:
        code = self.processes[number].wait(timeout_s)
        out, error = (path.read_text() for path in self._files(number))
        return Ended(code=code, out=out, error=error)

    def __enter__(self) -> "Ward":
        return self

    def __exit__(self, *given: object) -> None:
        for process in self.processes:
            process.send(signal.SIGKILL)
            process.wait(20)
        self._folder.cleanup()

    def _files(self, rank: int) -> tuple[Path, Path]:
        return Path(self._folder.name) / f"{rank}.out", Path(self._folder.name) / f"{rank}.error"


class _Fresh:
    def __init__(
        self, arguments: Sequence[str], environment: dict[str, str], files: tuple[Path, Path]
    ) -> None:
        out, error = files
        with out.open("w") as stdout, error.open("w") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "launch.doctor", *arguments],
                cwd=ROOT, env=environment, stdout=stdout, stderr=stderr,
            )  # fmt: skip

    def send(self, number: int) -> None:
        self._process.send_signal(number)

    def wait(self, timeout_s: float) -> int:
        return self._process.wait(timeout_s)


class _Fork:
    def __init__(
        self, arguments: Sequence[str], environment: dict[str, str], files: tuple[Path, Path]
    ) -> None:
        self._process = fork_context.Process(target=_enter, args=(arguments, environment, files))
        self._process.start()

    def send(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(self._process.pid or 0, number)

    def wait(self, timeout_s: float) -> int:
        self._process.join(timeout_s)
        assert self._process.exitcode is not None, f"it still ran after {timeout_s} s"
        return self._process.exitcode


def _enter(arguments: Sequence[str], environment: dict[str, str], files: tuple[Path, Path]) -> None:
    for number, path in enumerate(files, start=1):
        with path.open("wb") as file:
            os.dup2(file.fileno(), number)
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    raise SystemExit(command.main(arguments))


def _environment(rank: int, world_size: int, port: int) -> dict[str, str]:
    own = {key: value for key, value in os.environ.items() if key not in _LAUNCHED}
    return own | {
        "RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }


def node(number: int, **environment: str) -> Patient:
    """The only rank of an emulated node."""
    return Patient(environment={"GROUP_RANK": str(number), "LOCAL_RANK": "0", **environment})


def examine(
    *arguments: str, ranks: Sequence[Patient], timeout_s: float = 120, fresh: bool = True
) -> list[Ended]:
    """Run the doctor on every rank and wait for all of them."""
    with Ward(*arguments, ranks=ranks, fresh=fresh) as ward:
        return [ward.wait(number, timeout_s) for number in range(len(ranks))]


def only(*checks: str) -> list[str]:
    """The options that leave out all other checks."""
    return ["--skip", *(name for name in CHECKS if name not in checks)]


def rows(ended: Ended) -> dict[str, dict[str, Any]]:
    """The checks of the last line, by name; of several rows of one name the first that failed."""
    found: dict[str, dict[str, Any]] = {}
    for row in json.loads(ended.out.splitlines()[-1])["checks"]:
        if found.setdefault(row["check"], row)["status"] != "fail" and row["status"] == "fail":
            found[row["check"]] = row
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
    meeting = SimpleNamespace(
        arrival=arrival(world_size=1), leads=True, publish=lambda key, value: None
    )
    return Visit(
        config=config or RunConfig(), options=DoctorOptions(**options), meeting=cast(Any, meeting)
    )
