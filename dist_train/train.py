"""Entry of one training rank: check, build, train, score, report.

timellm train --config FILE [--profile] [--resume auto|PATH]   one process
deepspeed --module dist_train.train --config FILE              every rank of this machine
torchrun --nproc_per_node 2 -m dist_train.train --config FILE  the same
srun python -m dist_train.train --config FILE                  every task of a Slurm job

Exit codes: 0 finished, 2 refused with one line, 3 another rank died or failed, 4 a rank hung,
71 out of memory, 75 stopped for a signal, to be started again with --resume auto; 1 anything else.
"""

import os
import sys
import time
from collections.abc import Sequence
from typing import Any

from dist_train import out_of_memory, preflight, processes, run_folder, stop_signals, terminal
from dist_train.config import (
    ConfigError,
    RunConfig,
    add_resume_arguments,
    build_parser,
    fail,
    parse_run_config,
)
from dist_train.launcher import adopt_launcher
from dist_train.memory_account import account


def run_training(
    config: RunConfig, where: str | None = None, counter: int | None = None
) -> dict[str, Any]:
    """Check a run, join the ranks that the launcher started, train and score; collective.

    Args:
        config: The run.
        where: ``--resume``: auto, or the path of a checkpoint or of a run; None: a new run.
        counter: ``--resume_counter``.

    Returns:
        What ``result.json`` holds, on every rank.

    Raises:
        ValueError: The configuration, the data, the backbone or the run folder is refused.
        FloatingPointError: The loss is not finite.
        LeakError: The memory shows windows their own futures.
        StopRequestedError: A signal asked to stop.
    """
    if counter is not None and (where is None or counter < 0):
        raise ConfigError(f"--resume_counter {counter}: needs --resume, and a count of at least 0.")
    where = run_folder.resume_of(config, where)
    finished = run_folder.admit(config, where, counter)
    if finished is not None:
        return finished
    with stop_signals.checking(), account.phase("data"):
        checked = preflight.check(config)

    from dist_train import distributed, watchdog
    from dist_train.session import Resume, train_and_score

    distributed.initialize_process_group(config.train.collective_timeout_s)
    try:
        wanted = None if where is None else Resume(where=where, counter=counter)
        with watchdog.watch(config.train.watchdog_s):
            result = train_and_score(config, checked, wanted)
        with distributed.agree_or_raise("Writing down the settings"):
            if distributed.is_main_rank():
                run_folder.write_limits(config)
        return result
    finally:
        distributed.shut_down()


def is_refusal(error: Exception) -> bool:
    """Whether one line says it all. Torch's own errors are faults, and need their traceback."""
    from dist_train.leak_alarm import LeakError
    from memory_index.groups import OtherRankError
    from memory_index.sharded_index import SearchError

    return isinstance(error, (OtherRankError, LeakError, SearchError))


def main(argv: Sequence[str] | None = None) -> int:
    """Read the command line and train; returns the exit code.

    The module's docstring lists the codes.
    """
    os.environ.setdefault("TIMELLM_STARTED_AT", str(time.time()))
    processes.begin()
    parser = build_parser("timellm train")
    add_resume_arguments(parser)
    parser.add_argument("--local_rank", type=int, help="Given by the deepspeed launcher.")
    with stop_signals.listening():
        try:
            try:
                adopt_launcher()
                with stop_signals.checking():  # a launcher ends all ranks where one refuses
                    arguments = sys.argv[1:] if argv is None else argv
                    config, further = parse_run_config(parser, arguments)
            except ValueError as error:
                return fail(error)
            return _train(config, further["resume"], further["resume_counter"])
        except stop_signals.StopRequestedError as error:
            sys.stderr.write(f"stopped: {error}\n")
            return stop_signals.EXIT_STOPPED


def _train(config: RunConfig, where: str | None, counter: int | None) -> int:
    is_main = int(os.environ.get("RANK", "0")) == 0
    try:
        result = run_training(config, where, counter)
    except stop_signals.StopRequestedError as error:
        if is_main and error.step is not None:
            run_folder.write_stopped(config.run_folder, str(error), error.step)
        raise
    except Exception as error:
        if isinstance(error, ValueError):
            return fail(error)
        if stop_signals.received():  # what another rank's end has caused is of no interest
            raise stop_signals.StopRequestedError(stop_signals.received()) from error
        if out_of_memory.is_out_of_memory(error):
            return out_of_memory.report(error, config)
        if isinstance(error, (OSError, FloatingPointError)) or is_refusal(error):
            return fail(error)
        raise
    if is_main:
        terminal.say(run_folder.result_line(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
