"""Run cells as processes of their own, so that one that crashes does not end the others.

A signal is passed on to the runs, which save; the same command goes on with them. A run whose
ablation was killed notices it as it would the end of a launcher, and saves too. What another
process runs right now is left to it, and tried again where it ends without a result.
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TextIO

from dist_train.ablation.cells import Cell
from dist_train.ablation.results import is_finished
from dist_train.config import ConfigError
from dist_train.launcher import RANK_VARIABLES
from dist_train.run_folder import is_locked
from dist_train.stop_signals import EXIT_STOPPED, SIGNALS, StopRequestedError, recorded
from memory_index.atomic_file import write_text

_REFUSED, _RUNS_ALREADY = 2, "another job runs there right now"
_TICK_S = 0.2
_LOOK_ELSEWHERE_S = 5.0
_OF_A_RANK = (*RANK_VARIABLES, "SLURM_STEP_ID", "TIMELLM_STARTED_AT")
_DEVICES = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much runs at once."""

    ranks: int = 1
    """Ranks of each training."""

    jobs: int = 1
    """Cells at once."""


@dataclass(frozen=True, kw_only=True)
class _Running:
    cell: Cell
    process: "subprocess.Popen[bytes]"
    log: TextIO
    slot: int
    began: float
    log_size: int
    """Bytes that earlier attempts had written."""


def run_cells(
    cells: Sequence[Cell], config_file: str, limits: Limits, say: Callable[[str], None]
) -> None:
    """Run every cell that has not finished, and write down how others failed.

    Args:
        cells: In this order.
        config_file: What ``--config`` names.
        limits: Ranks, and cells at once.
        say: Gets a line for each beginning and end.

    Raises:
        ConfigError: There are not as many GPUs as asked for, or a folder is taken.
        StopRequestedError: A signal asked to stop; the runs have saved.
    """
    waiting = [cell for cell in cells if not is_finished(cell)]
    devices = _devices_of_slots(limits)
    if len(cells) > len(waiting):
        say(f"{len(cells) - len(waiting)} of {len(cells)} runs have finished before")
    running: list[_Running] = []
    elsewhere: list[Cell] = []
    num_passed_on, looked = 0, time.monotonic()
    with recorded(SIGNALS) as signals:
        while waiting or running or elsewhere:
            stopping = bool(signals)
            running = [one for one in running if not _has_ended(one, stopping, say, elsewhere)]
            if elsewhere and time.monotonic() - looked > _LOOK_ELSEWHERE_S:
                looked = time.monotonic()
                free = [cell for cell in elsewhere if not is_locked(cell.folder)]
                elsewhere = [cell for cell in elsewhere if cell not in free]
                waiting += [cell for cell in free if not is_finished(cell)]
            if signals:
                if not running:
                    raise StopRequestedError(signals[0].name)
                new = signals[num_passed_on:]  # a second Ctrl-C ends a run at once
                num_passed_on += len(new)
                for number, one in product(new, running):
                    one.process.send_signal(number)
            elif waiting and len(running) < limits.jobs:
                slot = min(set(range(limits.jobs)) - {one.slot for one in running})
                cell = waiting.pop(0)
                if is_finished(cell):  # by another process, meanwhile
                    continue
                if is_locked(cell.folder):
                    _leave(cell, elsewhere, say)
                    continue
                say(f"{cell.label}: begins; {len(waiting)} after it, log {cell.log}")
                running.append(_start(cell, config_file, limits, slot, devices[slot]))
                continue
            time.sleep(_TICK_S)


def command_of(cell: Cell, config_file: str, ranks: int) -> list[str]:
    """The command that runs a cell, or goes on with it."""
    arguments = ["--config", config_file, *cell.arguments]
    if cell.kind == "baselines":
        module = ["dist_train.baseline_run", "--baselines", *cell.names]
    elif ranks > 1:
        module = ["launch.local", str(ranks)]
    else:
        module = ["dist_train.train"]
    resume = ["--resume", "auto"] if cell.kind == "training" else []
    return [sys.executable, "-m", *module, *arguments, *resume]


def _start(
    cell: Cell, config_file: str, limits: Limits, slot: int, devices: str | None
) -> _Running:
    environment = {key: value for key, value in os.environ.items() if key not in _OF_A_RANK}
    if devices is not None:
        environment[_DEVICES] = devices
    if limits.jobs > 1:  # each its share of the cores
        cores = max(1, (os.cpu_count() or 1) // (limits.jobs * limits.ranks))
        environment.setdefault("OMP_NUM_THREADS", str(cores))
    cell.log.parent.mkdir(parents=True, exist_ok=True)
    cell.failure.unlink(missing_ok=True)
    log = cell.log.open("a", encoding="utf-8")
    log_size = cell.log.stat().st_size
    # A session of its own: Ctrl-C in a terminal reaches this process alone, which passes it on.
    process = subprocess.Popen(
        command_of(cell, config_file, limits.ranks), stdin=subprocess.DEVNULL, stdout=log,
        stderr=log, env=environment, start_new_session=True,
    )  # fmt: skip
    return _Running(
        cell=cell, process=process, log=log, slot=slot, began=time.monotonic(), log_size=log_size
    )


def _has_ended(
    one: _Running, stopping: bool, say: Callable[[str], None], elsewhere: list[Cell]
) -> bool:
    """Whether a run is over; a failure is written down then.

    One that another process came before, by a moment, joins those that run elsewhere.
    """
    code = one.process.poll()
    if code is None:
        return False
    one.log.close()
    cell, seconds = one.cell, time.monotonic() - one.began
    if code == 0 and is_finished(cell):
        say(f"{cell.label}: finished after {seconds:.0f} s")
        return True
    reason = reason_of(cell.log, one.log_size)
    if code == _REFUSED and _RUNS_ALREADY in reason:
        _leave(cell, elsewhere, say)
    elif stopping or code == EXIT_STOPPED:
        say(f"{cell.label}: stopped; the same command goes on with it")
        if not stopping:  # somebody signalled that run alone: nobody wants the rest any less
            write_failure(cell, code, "stopped by a signal; the same command goes on with it")
    else:
        write_failure(cell, code, reason)
        say(f"{cell.label}: failed with code {code} after {seconds:.0f} s: {reason}")
    return True


def _leave(cell: Cell, elsewhere: list[Cell], say: Callable[[str], None]) -> None:
    say(f"{cell.label}: is run by another process, which is waited for")
    elsewhere.append(cell)


def write_failure(cell: Cell, code: int, reason: str) -> None:
    """Write down how a cell failed; the table says so, and the next command tries it again."""
    cell.failure.parent.mkdir(parents=True, exist_ok=True)
    write_text(cell.failure, json.dumps({"code": code, "reason": reason}))


def reason_of(log: Path, begin: int = 0) -> str:
    """The last line of a log that names an error, else its last line, from a byte on."""
    try:
        text = log.read_bytes()[begin:].decode(errors="replace")
    except OSError as error:
        return f"its log cannot be read ({error.strerror})"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"error: |\w*(Error|Exception): ", line)]
    last = (errors or lines or ["it said nothing"])[-1]
    return last.removeprefix("error: ")[:300]


def _devices_of_slots(limits: Limits) -> list[str | None]:
    """Which GPUs each slot gets; None: what is visible, or the CPU.

    Raises:
        ConfigError: Cells at once need more GPUs than there are.
    """
    visible = os.environ.get(_DEVICES)
    names = visible.split(",") if visible else []
    if visible is None:
        paths = Path("/dev").glob("nvidia[0-9]*")
        names = sorted((path.name.removeprefix("nvidia") for path in paths), key=int)
    if limits.jobs == 1 or not names:
        return [None] * limits.jobs
    if len(names) < limits.jobs * limits.ranks:
        raise ConfigError(
            f"--jobs {limits.jobs}: needs {limits.jobs * limits.ranks} GPUs with --ranks "
            f"{limits.ranks}, and there are {len(names)}: lower one of them."
        )
    size = limits.ranks
    return [",".join(names[slot * size : (slot + 1) * size]) for slot in range(limits.jobs)]
