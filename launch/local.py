"""Train on the GPUs or cores of this machine; what ``launch/local.sh`` runs.

    python -m launch.local RANKS --config FILE [--resume auto|PATH] [--section.key value ...]

Exit codes: 0 finished, 2 refused, 75 stopped for a signal with everything saved (EX_TEMPFAIL of
sysexits.h: run it again with ``--resume auto``), else that of the launcher.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

from dist_train import preflight, run_folder
from dist_train.config import (
    ConfigError,
    add_resume_arguments,
    build_parser,
    fail,
    parse_run_config,
)
from dist_train.stop_signals import EXIT_STOPPED
from launch.supervisor import GRACE_S, STOP_SIGNALS, Ended, supervise

KILLED = (128 + signal.SIGKILL, 256 - signal.SIGKILL)
"""Exit codes for a rank that SIGKILL ended: a shell's, and that of the deepspeed launcher."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be done."""

    folder: Path
    """The run's folder."""

    arguments: list[str]
    """Of every rank."""


class _StoppedError(BaseException):
    """A signal came before there were any ranks; passes by all that handles errors."""


def plan_run(argv: Sequence[str]) -> Plan | str:
    """Check a run once, for all ranks, and choose its folder.

    With ``--resume`` the run keeps its name, and what lies in its folder is gone on with; without,
    it gets a name that is free.

    Args:
        argv: The run's command line.

    Returns:
        The plan; or the result line, where the same run has finished before.

    Raises:
        ValueError: The configuration, the data, the backbone or the run folder is refused.
    """
    parser = build_parser("launch/local.sh")
    add_resume_arguments(parser)
    config, further = parse_run_config(parser, argv)
    checked = preflight.check(config)
    ranks = int(os.environ["WORLD_SIZE"])
    identity = preflight.identity(config, checked, ranks)
    name, rest = run_folder.plan_start(
        config, identity, where=further["resume"], counter=further["resume_counter"]
    )
    if name == "finished":
        return rest
    named = [] if name == config.name else ["--name", name]
    return Plan(folder=Path(rest), arguments=[*argv, *named])


def read_ranks(text: str) -> int:
    """Read the number of ranks of a command line.

    Raises:
        ConfigError: It is no whole number of at least 1.
    """
    if not re.fullmatch("[1-9][0-9]*", text):
        raise ConfigError(f"RANKS={text}: give the number of ranks, a whole number of at least 1.")
    return int(text)


def deepspeed_command(ranks: int, arguments: Sequence[str]) -> list[str]:
    """The command that starts the ranks."""
    # A port of its own, so that two runs on one machine do not meet at the launcher's default.
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    return [
        sys.executable, "-m", "deepspeed.launcher.runner", "--log_level", "error",
        "--no_local_rank", *_devices(ranks), "--master_port", str(port),
        "--module", "dist_train.train", *arguments,
    ]  # fmt: skip


def _devices(ranks: int) -> list[str]:
    """Where the ranks go: DeepSpeed passes over CUDA_VISIBLE_DEVICES where a number is given."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if not visible or os.environ.get("DS_ACCELERATOR") == "cpu" or not shutil.which("nvidia-smi"):
        return ["--num_gpus", str(ranks)]
    numbers = [number.strip() for number in visible.split(",")]
    if not all(number.isdecimal() for number in numbers):
        raise ConfigError(
            f"CUDA_VISIBLE_DEVICES={visible}: the deepspeed launcher knows GPUs by number alone; "
            "give their numbers, as in the first column of nvidia-smi, or use torchrun."
        )
    if ranks > len(numbers):
        raise ConfigError(
            f"{ranks} ranks and CUDA_VISIBLE_DEVICES={visible}: every rank needs a GPU of its own; "
            "lower RANKS, or make more of them visible."
        )
    return ["--include", f"localhost:{','.join(numbers[:ranks])}"]


def judge(
    ended: Ended, folder: Path, stopped_before: str | None, finished_before: int | None
) -> int:
    """Say how a run ended, on stderr, unless it is finished; returns the exit code.

    The launcher's own code cannot tell: it is 0 after some signals.

    Args:
        ended: What became of launcher and ranks.
        folder: The run's folder.
        stopped_before: What :func:`read_stopped` returned before they started.
        finished_before: What :func:`finished_at` returned then: a finished run may go on.
    """
    if finished_at(folder) not in (None, finished_before):
        return ended.code
    stopped = read_stopped(folder)
    if stopped is not None and stopped != stopped_before:
        facts = json.loads(stopped)
        _say(
            f"stopped by {facts.get('signal')} after step {facts.get('step')}: saved in {folder}; "
            "run it again with --resume auto."
        )
        return EXIT_STOPPED
    if ended.signal is not None and ended.code in (
        128 + ended.signal, 256 - ended.signal, 128 + signal.SIGTERM, 256 - signal.SIGTERM,
    ):  # fmt: skip
        _say(f"stopped by {ended.signal.name} before the ranks could save; run it again.")
        return EXIT_STOPPED
    _say(f"error: the run did not finish; see the messages above and {folder}")
    if ended.code in KILLED and ended.signal is None:
        _say(
            "error: a rank was killed by SIGKILL. If nobody did that, the host memory was used up "
            "(dmesg tells): lower train.micro_batch_size, data.num_workers or RANKS."
        )
    return ended.code or 1


def finished_at(folder: Path) -> int | None:
    """When the result of a run was written, in ns; None where there is none."""
    try:
        return (folder / run_folder.RESULT_FILE).stat().st_mtime_ns
    except OSError:
        return None


def read_stopped(folder: Path) -> str | None:
    """Read the mark of a run that stopped for a signal; None where there is none."""
    try:
        text = (folder / run_folder.STOPPED_FILE).read_text(encoding="utf-8")
        return text if isinstance(json.loads(text), dict) else None
    except (OSError, ValueError):
        return None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command of the module docstring; returns the exit code."""
    given, *arguments = sys.argv[1:] if argv is None else argv
    try:
        ranks = read_ranks(given)
        os.environ["WORLD_SIZE"] = given
        with _raised_signals():
            plan = plan_run(arguments)
            if isinstance(plan, str):
                print(f"This run has finished before; its result:\n{plan}")
                return 0
            before = read_stopped(plan.folder), finished_at(plan.folder)
            command = deepspeed_command(ranks, plan.arguments)
            grace_s = float(os.environ.get("TIMELLM_STOP_S", GRACE_S))
            ended = supervise(command, grace_s=grace_s)
    except (ValueError, OSError) as error:
        return fail(error)
    except _StoppedError as stopped:
        _say(f"stopped by {stopped} before the training began: nothing was to save.")
        return EXIT_STOPPED
    return judge(ended, plan.folder, *before)


@contextlib.contextmanager
def _raised_signals() -> Iterator[None]:
    """Turn a stop signal into an exception; those that are ignored here stay ignored."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise _StoppedError(signal.Signals(number).name)

    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
