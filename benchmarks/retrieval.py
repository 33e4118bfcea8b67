"""The sharded memory: how fast it is, what it finds, what a step and ten million entries cost.

    python -m benchmarks.retrieval [--data.root DIR] [--parts search,step,large] [--quick]

search   224 queries x top 5 with exclusion on two ranks of one core, one million entries x 256, in
         turn with torch brute force and with plain FAISS (one index, both cores, no exclusion).
step     a training step of the quickstart model with a live memory of a million entries, in turn
         with the same step on neighbours kept from before, and without a memory.
large    ten million entries: build, reload and search, and the memory of both ranks.

Needs weather.csv and ETTm1.csv (--data.root, else TIMELLM_DATA_ROOT); --quick takes the embedded
vic_elec and small sizes, in about two minutes. Keys are kept in the cache folder ($TIMELLM_CACHE)
for the next time. Prints the figures of each part and, last, one JSON line.
"""

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser

from benchmarks import retrieval_large, retrieval_search, retrieval_step
from benchmarks.rank_processes import run_on_ranks
from benchmarks.retrieval_leak import commit
from benchmarks.rounding import decimals
from dist_train.config import fail
from dist_train.reproducibility import code_fingerprint

PARTS = ("search", "step", "large")
HEADLINES = (
    "recall_at_5",
    "time_over_brute_force",
    "time_over_plain_faiss",
    "step_over_no_retrieval",
    "rss_gib_10m",
)


def run(parts: Sequence[str], root: str | None, quick: bool) -> dict[str, Any]:
    """Measure some parts; figures of the others are None."""
    figures: dict[str, Any] = dict.fromkeys(HEADLINES)
    if "search" in parts:
        figures |= run_on_ranks(
            retrieval_search.measure, 2, root, quick, retrieval_search.cache_folder()
        )[0]
    if "step" in parts:
        figures |= run_on_ranks(retrieval_step.measure, 2, quick)[0]
    if "large" in parts:
        with tempfile.TemporaryDirectory(prefix="timellm-large-") as name:
            figures |= retrieval_large.measure(Path(name), root, quick)
    return figures


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit code: 0 done, 2 refused with a message."""
    parser = ArgumentParser(
        prog="python -m benchmarks.retrieval",
        exit_on_error=False,
        description="Search, step and size of the sharded memory.",
    )
    parser.add_argument("--data.root", type=str, help="Folder of weather.csv and ETTm1.csv.")
    parser.add_argument("--parts", type=str, default=",".join(PARTS), help="Some of the parts.")
    parser.add_argument("--quick", action="store_true", help="Small sizes, embedded series.")
    began = time.monotonic()
    code = {"commit": commit(), "code": code_fingerprint()}
    try:
        options = parser.parse_args(argv)
        parts = options.parts.split(",")
        unknown = sorted(set(parts) - set(PARTS))
        if unknown:
            raise ValueError(
                f"--parts {options.parts}: {unknown[0]} is none of {', '.join(PARTS)}."
            )
        figures = run(parts, options.data.root, options.quick)
    except (ArgumentError, ValueError, OSError, RuntimeError) as error:
        return fail(error)
    for name, value in figures.items():
        print(f"{name}: {json.dumps(value, indent=1)}", file=sys.stderr)
    about = {"quick": options.quick, "seconds": round(time.monotonic() - began, 1)}
    print(json.dumps({**decimals(figures, 4), **about, **code}), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
