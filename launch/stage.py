"""Copy what a run reads to this node's own disk; ``launch/slurm.sbatch`` runs it on each node.

    TIMELLM_LOCAL_COPY=DIR python -m launch.stage --config FILE [--section.key value ...]

The data files or built sources, and the folder of banks that bank.path names. See
dist_train/local_copy.py.
"""

import os
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from dist_train import local_copy, terminal
from dist_train.config import (
    ConfigError,
    RunConfig,
    add_resume_arguments,
    build_parser,
    fail,
    parse_run_config,
)
from dist_train.data import sources

_GIB = 2**30


def read_by(config: RunConfig) -> list[Path]:
    """Files and folders that every rank of a run reads, and that are there.

    Raises:
        DataError: A data set's file is nowhere.
    """
    found = sources.read_by(config.data)
    if config.bank.path is not None and config.gram.use_gram is not False:
        found.append(Path(config.bank.path).expanduser())
    return [path for path in found if path.exists()]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command of the module docstring; returns the exit code: 0 copied, 2 refused."""
    parser = build_parser("python -m launch.stage")
    add_resume_arguments(parser)
    node = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    try:
        if not os.environ.get(local_copy.VARIABLE):
            raise ConfigError(f"{local_copy.VARIABLE} is not set: name a folder of this node.")
        config, _ = parse_run_config(parser, sys.argv[1:] if argv is None else argv)
        for path in read_by(config):
            began = time.monotonic()
            copy = local_copy.make(path)
            files = [copy] if copy.is_file() else [one for one in copy.rglob("*") if one.is_file()]
            size = sum(one.stat().st_size for one in files)
            terminal.say(
                f"{node}: {path} is at hand in {copy}: {size / _GIB:.3f} GiB, "
                f"{time.monotonic() - began:.1f} s"
            )
    except (ValueError, OSError) as error:
        return fail(error)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
