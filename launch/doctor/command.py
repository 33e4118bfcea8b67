"""The command ``timellm doctor``, and what every rank runs under a launcher.

    timellm doctor [--config FILE] [--section.key value ...]           this machine
    torchrun --nproc_per_node 2 -m launch.doctor --config FILE         every rank
    deepspeed --module launch.doctor --config FILE                     the same
    srun python -m launch.doctor --config FILE                         the same

Rank 0 prints the table. A rank that cannot take part prints one line of its own. Exit codes, equal
on all ranks that take part: 0 nothing failed (there may be warnings), 1 something did, 2 wrong
arguments. Each wait ends after ``--timeout_s``.

``--json`` prints one object as the last line of rank 0::

    {"status": "ok" | "warn" | "fail",   the worst of all rows
     "code": 0 | 1,                      the exit code
     "world_size": 2,                    ranks that rank 0 was told of; null if it met nobody
     "arrived": [{"rank": 0, "node": "a", "local_rank": 0, "pid": 12}, ...],
     "seconds": 9.1,                     from the start of the command
     "checks": [{"check": "ranks",       the row's name
                 "status": "ok" | "warn" | "fail" | "skip",
                 "found": "...", "remedy": "...",        text; remedy is empty for ok and skip
                 "numbers": {"mib_per_s": 812.0}}, ...]} measurements, units in their names
"""

import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from dist_train import processes
from dist_train.config import RunConfig, fail
from dist_train.launcher import adopt_launcher
from launch.doctor.address import Place, UnreachableError, read_place
from launch.doctor.bounded import bounded, is_left_behind
from launch.doctor.deadman import Deadman
from launch.doctor.finding import Finding
from launch.doctor.options import DoctorOptions, parse
from launch.doctor.table import to_json, to_table

_PARSING_S = 60.0  # --timeout_s is not known yet
_SLACK_S = 5.0


def main(argv: Sequence[str] | None = None) -> int:
    """Examine one rank; returns the exit code, see the module's docstring."""
    began = time.monotonic()
    os.environ["TORCH_CPP_LOG_LEVEL"] = "FATAL"  # each failure is a row, or one line
    os.environ["HF_HUB_OFFLINE"] = "1"  # a doctor fetches nothing
    processes.begin()
    try:
        arguments = sys.argv[1:] if argv is None else argv
        config, options = bounded(lambda: parse(arguments), _PARSING_S)
        adopt_launcher()
        place = read_place()
    except TimeoutError as error:
        return fail(ValueError(f"--config: reading it {error}; copy it to a disk that answers."))
    except ValueError as error:
        return fail(error)
    signal.signal(signal.SIGTERM, _stop)  # so that what must be deleted is
    code = _examine(config, options, place, began)
    sys.stdout.flush()
    sys.stderr.flush()
    if is_left_behind():  # it would keep the interpreter from ending, or abort it
        os._exit(code)
    return code


def _examine(config: RunConfig, options: DoctorOptions, place: Place, began: float) -> int:
    try:
        from dist_train import distributed
        from launch.doctor import checkup
        from launch.doctor.check import Visit
        from launch.doctor.meeting import LostLeaderError, Meeting
    except (ImportError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        remedy = "Install the packages of requirements.lock again."
        finding = Finding(check="torch", status="fail", found=reason, remedy=remedy)
        return _tell_alone(place, _host(), finding, options, began)

    node = "/".join(part for part in distributed.node_name().split("/") if part)
    leftovers: list[Path] = []

    def give_up(what: str) -> None:
        _delete(leftovers)
        _say(f"doctor: rank {place.rank} ({node}): hangs in {what}, and ends itself; if rank 0 "
             "has stopped, its machine or its network is where to look.")  # fmt: skip

    # Two waits may follow one another without a sign of life: for a listener, then for its answer.
    deadman = Deadman(2 * options.timeout_s + _SLACK_S, give_up)
    try:
        meeting = Meeting(place, node, options.timeout_s, deadman.touch)
    except UnreachableError as error:
        remedy = (
            "Start rank 0 there, within --timeout_s of the others; check that MASTER_ADDR is the "
            "node of rank 0, that this node resolves and routes it, and that no firewall is "
            "between; or choose another MASTER_PORT."
        )
        found = (
            f"cannot reach MASTER_ADDR={place.address} MASTER_PORT={place.port} within "
            f"{options.timeout_s:g} s: {error}"
        )
        finding = Finding(check="ranks", status="fail", found=found, remedy=remedy)
        deadman.release()
        return _tell_alone(place, node, finding, options, began)
    visit = Visit(config=config, options=options, meeting=meeting, leftovers=leftovers)
    try:
        verdict = checkup.examine(visit)
        if meeting.leads:
            _tell(verdict.findings, options, began, code=verdict.code, world_size=place.world_size,
                  arrived=[{"rank": one.rank, "node": one.node, "local_rank": one.local_rank,
                            "pid": one.pid} for one in verdict.arrivals])  # fmt: skip
            meeting.leave(len(verdict.arrivals) - 1)
        return verdict.code
    except LostLeaderError as error:
        _say(f"doctor: rank {place.rank} ({node}): {error}; see the output of rank 0.")
        return 1
    finally:
        _delete(leftovers)
        if not is_left_behind():
            distributed.shut_down()
        deadman.release()


def _tell_alone(
    place: Place, node: str, finding: Finding, options: DoctorOptions, began: float
) -> int:
    """Say why this rank takes no part; rank 0 as a table, since there will be no other."""
    if place.rank == 0:
        _tell([finding], options, began, code=1, world_size=None, arrived=[])
    else:
        _say(f"doctor: rank {place.rank} ({node}): {finding.found}. {finding.remedy}")
    return 1


def _tell(
    findings: Sequence[Finding], options: DoctorOptions, began: float, **about: object
) -> None:
    print(to_table(findings))
    if options.json:
        seconds = round(time.monotonic() - began, 1)
        print(json.dumps(to_json(findings, **about, seconds=seconds)))
    sys.stdout.flush()


def _say(text: str) -> None:
    # One write: the lines of several ranks would otherwise run into each other.
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def _delete(paths: Sequence[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _host() -> str:
    return os.uname().nodename


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)
