"""Run programs as a person sees them: with a terminal to write on."""

import fcntl
import os
import pty
import struct
import subprocess
import termios
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, kw_only=True)
class OnTerminal:
    """What came of a program."""

    returncode: int
    shown: str
    """What it wrote to the terminal."""

    stdout: str
    """What it wrote to a pipe beside it; empty where there was none."""


def run_on_terminal(
    command: Sequence[str], *, env: Mapping[str, str], columns: int, pipe_stdout: bool = False
) -> OnTerminal:
    """Run a program from the root of the repository until it ends; it reads nothing.

    Args:
        command: Program and arguments.
        env: Its environment.
        columns: Width of the terminal; 0: it does not say.
        pipe_stdout: Only the errors go to the terminal; what is printed fits a pipe.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    with subprocess.Popen(
        command, cwd=ROOT, env=env, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if pipe_stdout else theirs, stderr=theirs,
    ) as process:  # fmt: skip
        os.close(theirs)
        shown = b""
        try:
            while piece := os.read(ours, 4096):
                shown += piece
        except OSError:  # the other end is closed
            pass
        printed = b"" if process.stdout is None else process.stdout.read()
    os.close(ours)
    return OnTerminal(returncode=process.returncode, shown=shown.decode(), stdout=printed.decode())
