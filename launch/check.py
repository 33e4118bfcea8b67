"""Check a run once, before a job starts its ranks; ``launch/slurm.sbatch`` does it first.

    python -m launch.check RANKS --config FILE --resume auto [--section.key value ...]

Exit codes: 0 start it, 2 refused, 10 it has finished before and its result line was printed.
"""

import os
import sys
from collections.abc import Sequence

from dist_train.config import fail
from launch.local import plan_run, read_ranks

FINISHED = 10


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command of the module docstring; returns the exit code."""
    ranks, *arguments = sys.argv[1:] if argv is None else argv
    try:
        os.environ["WORLD_SIZE"] = str(read_ranks(ranks))
        plan = plan_run(arguments)
    except (ValueError, OSError) as error:
        return fail(error)
    if isinstance(plan, str):
        print(f"This run has finished before; its result:\n{plan}")
        return FINISHED
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
