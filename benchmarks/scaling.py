"""What a larger corpus and more ranks cost: ``python -m benchmarks.scaling``.

Builds corpora of 10^5, 10^6 and 10^7 training windows (``--quick``: 10^4 and 10^5), trains on each
with the user's own command, and measures its host memory, its speed, and the seconds to the first
step. Then steps with loaded batches against steps with batches that lie in memory, and one rank on
one core against two on two. The last line is JSON:

* ``rss_growth``: memory of a training (rank and workers, without pages of files) on the largest
  corpus over that on the smallest.
* ``loading_overhead``: how much longer a step is because its batch is loaded, as a share of it.
* ``weak_scaling_2``: windows per second of two ranks over those of one, each on one core, with a
  memory.
* ``start_s``: seconds from the command to the end of the first step, on the largest corpus.
* ``exponents``: of memory, speed and start over the number of windows, fitted on logarithms.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from benchmarks import scaling_corpus, scaling_start, scaling_steps
from benchmarks.random_gpt2 import write_random_gpt2
from benchmarks.rank_processes import run_on_ranks

SIZES, QUICK_SIZES = (10**5, 10**6, 10**7), (10**4, 10**5)
STEPS, QUICK_STEPS = 200, 30
TURNS, QUICK_TURNS = 15, 3
PAIRS, QUICK_PAIRS = 3, 1


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Slope of logarithms: 0 where the value does not depend on the size, 1 where it follows it."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def main(argv: Sequence[str] | None = None) -> None:
    """Run all parts and print the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="Small corpora, few steps.")
    quick = parser.parse_args(argv).quick
    sizes, steps = (QUICK_SIZES, QUICK_STEPS) if quick else (SIZES, STEPS)
    turns, pairs = (QUICK_TURNS, QUICK_PAIRS) if quick else (TURNS, PAIRS)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        backbone = folder / "backbone"
        write_random_gpt2(backbone, width=64, layers=2, heads=4, vocab_size=2000, text="")
        corpora = {size: scaling_corpus.build(folder / f"corpus-{size}", size) for size in sizes}
        starts = {}
        for size, sources in corpora.items():
            own = folder / f"run-{size}"
            own.mkdir()
            starts[size] = scaling_start.measure(own, sources, backbone, steps)
            print(f"{size} windows: {starts[size]}", flush=True)
        given = (str(folder), [str(one) for one in corpora[sizes[-1]]], str(backbone))
        (loading,) = run_on_ranks(scaling_steps.measure_loading, 1, *given, turns)
        print(f"loading: {loading}", flush=True)
        ratios = []
        for _ in range(pairs):
            one, two = (
                run_on_ranks(scaling_steps.measure_rank, ranks, *given, steps)[0]
                for ranks in (1, 2)
            )
            print(f"one rank: {one}; two: {two}", flush=True)
            ratios.append(two["windows_per_s"] / one["windows_per_s"])
    first, last = starts[sizes[0]], starts[sizes[-1]]
    fields = ("anonymous_gib", "windows_per_s", "start_s")
    print(
        json.dumps(
            {
                "rss_growth": round(last.anonymous_gib / first.anonymous_gib, 4),
                "loading_overhead": round(loading["loading_overhead"], 4),
                "weak_scaling_2": round(float(np.median(ratios)), 3),
                "start_s": round(last.start_s, 2),
                "exponents": {
                    field: round(exponent(sizes, [getattr(starts[n], field) for n in sizes]), 4)
                    for field in fields
                },
                "corpora": {size: asdict(start) for size, start in starts.items()},
            }
        )
    )


if __name__ == "__main__":
    main()
