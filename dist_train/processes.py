"""Other processes of this machine: whether one still runs, and which launcher started this one.

Linux only, through /proc; elsewhere nothing is known, and so nothing is concluded.
"""

import os
import socket
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_PROC = Path("/proc")
_SCRIPTS = {"deepspeed", "ds", "torchrun"}
_MODULES = {
    "deepspeed.launcher.runner",
    "deepspeed.launcher.launch",
    "torch.distributed.run",
    "torch.distributed.launch",
}


@dataclass(frozen=True, kw_only=True)
class Process:
    """One process; a later one with the same number is another."""

    pid: int
    started: int
    """Clock ticks from the start of the machine."""

    name: str = ""

    def is_running(self) -> bool:
        """Whether it has not ended; a zombie has."""
        return _start_of(self.pid) == self.started


def begin() -> None:
    """Come first in every command, before torch is imported; called again it does nothing."""
    # Torch would tell of a lost peer in fifty lines of C++ frames.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    launchers()  # while they still run: they are watched from here on


def this_process() -> Process:
    """The process that asks."""
    return Process(pid=os.getpid(), started=_start_of(os.getpid()) or 0)


@cache
def this_machine() -> str:
    """Name of what numbers the processes: host, its boot, and namespace of process numbers."""
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        space = str((_PROC / "self/ns/pid").readlink())
    except OSError:
        return ""
    return f"{socket.gethostname()} {boot} {space}"


@cache
def launchers() -> tuple[Process, ...]:
    """The launchers among the ancestors of this process, nearest first; found at the first call.

    ``deepspeed`` has two on each machine that it was called on: its own process, and the one that
    starts the ranks.
    """
    found = []
    pid = os.getppid()
    while pid > 1:
        status, started = _status(pid), _start_of(pid)
        if status is None or started is None:
            break
        name = _launcher_name(pid)
        if name is not None:
            found.append(Process(pid=pid, started=started, name=name))
        pid = int(status[1])
    return tuple(found)


def _launcher_name(pid: int) -> str | None:
    """Which launcher a process is, judged by the program that it runs, not by all its words."""
    try:
        words = (_PROC / str(pid) / "cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return None
    words = [word for word in words if word]
    if words and Path(words[0]).name.startswith("python"):
        words = words[1:]
        while words and words[0].startswith("-") and words[0] != "-m":
            words = words[1:]
        if words[:2] == ["-m", "dist_train.cli"]:
            words = ["timellm", *words[2:]]
        elif words[:1] == ["-m"]:
            return words[1] if len(words) > 1 and words[1] in _MODULES else None
    name = Path(words[0]).name if words else ""
    if name == "timellm" and words[1:2] == ["ablate"]:
        return "timellm ablate"
    return name if name in _SCRIPTS else None


def _status(pid: int) -> list[str] | None:
    """State, parent, and so on: what /proc/PID/stat says after the name of the program."""
    try:
        text = (_PROC / str(pid) / "stat").read_text()
    except OSError:
        return None
    return text.rpartition(")")[2].split()


def _start_of(pid: int) -> int | None:
    """When a process started; None where it has ended."""
    status = _status(pid)
    return None if status is None or status[0] in "ZX" else int(status[19])
