"""Entry of one training rank: check, build, train, score, report.

timellm train --config FILE [--profile]                        one process
deepspeed --module dist_train.train --config FILE              every rank of this machine
torchrun --nproc_per_node 2 -m dist_train.train --config FILE  the same

Exit codes: 0 finished, 2 refused with one line, 71 out of memory with one line.
"""

import os
import sys
import time
from collections.abc import Sequence
from typing import Any

from dist_train import out_of_memory, preflight, run_folder
from dist_train.config import RunConfig, build_parser, fail, parse_run_config
from dist_train.memory_account import account


def run_training(config: RunConfig) -> dict[str, Any]:
    """Check a run, join the ranks that the launcher started, train and score; collective.

    Returns:
        What ``result.json`` holds, on every rank.

    Raises:
        ValueError: The configuration, the data, the backbone or the run folder is refused.
        FloatingPointError: The loss is not finite.
        LeakError: The memory shows windows their own futures.
    """
    run_folder.check_is_new(config)
    with account.phase("data"):
        checked = preflight.check(config)

    from dist_train import distributed
    from dist_train.session import train_and_score

    distributed.initialize_process_group(config.train.timeout_s)
    try:
        return train_and_score(config, checked)
    finally:
        distributed.shut_down()


def is_refusal(error: Exception) -> bool:
    """Whether one line says it all. Torch's own errors are faults, and need their traceback."""
    from dist_train.leak_alarm import LeakError
    from memory_index.groups import OtherRankError
    from memory_index.sharded_index import SearchError

    return isinstance(error, (OtherRankError, LeakError, SearchError))


def main(argv: Sequence[str] | None = None) -> int:
    """Read the command line and train; returns the exit code."""
    os.environ.setdefault("TIMELLM_STARTED_AT", str(time.time()))
    parser = build_parser("timellm train")
    parser.add_argument("--local_rank", type=int, help="Given by the deepspeed launcher.")
    config = None
    try:
        config, _ = parse_run_config(parser, sys.argv[1:] if argv is None else argv)
        result = run_training(config)
    except Exception as error:
        if out_of_memory.is_out_of_memory(error):
            return out_of_memory.report(error, config)
        if isinstance(error, (ValueError, OSError, FloatingPointError)) or is_refusal(error):
            return fail(error)
        raise
    if int(os.environ.get("RANK", "0")) == 0:
        print(run_folder.result_line(result), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
