"""What a larger corpus, a larger memory and more ranks cost: ``python -m benchmarks.scaling``.

* ``starts``: corpora of 10^5, 10^6 and 10^7 training windows (``--quick``: 10^4 and 10^5) are built
  and trained on with the user's own command: host memory, speed, seconds to the first step. Pages
  of the corpus are in the machine's cache, as it was just written; model selection scores about
  eighty windows (``data.val_series``), because all of them come before the first step.
* ``loading``: steps with loaded batches against steps with batches that lie in memory.
* ``ranks``: 1, 2 and 4 ranks, each on a core as far as there are cores, with a memory; beside what
  the simulation predicts.
* ``banks``: memories of 10^5, 10^6 and 10^7 entries, and 10^8 and 10^9 on paper.

``--parts`` names some of them. The last line is JSON, None for what was not measured:

* ``rss_growth``: memory of a training (rank and workers, without pages of files) on the largest
  corpus over that on the smallest.
* ``loading_overhead``: how much longer a step is because its batch is loaded, as a share of it.
* ``weak_scaling_2``: windows per second of two ranks over those of one, each on one core;
  ``ranks``: the same of others, of jobs on the N cores that know nothing of each other
  (``cores_N``), and as predicted.
* ``start_s``: seconds from the command to the end of the first step, on the largest corpus.
* ``exponents``: slopes of logarithms, over windows, entries and ranks.

Starts and ranks are medians of three measurements, loading of eight turns.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import (
    scaling_banks,
    scaling_corpus,
    scaling_loading,
    scaling_ranks,
    scaling_start,
)
from benchmarks.rank_processes import run_on_ranks
from benchmarks.retrieval_leak import commit
from benchmarks.rounding import significant
from benchmarks.scaling_start import Start
from benchmarks.step_time import RANKS

PARTS = ("starts", "loading", "ranks", "banks")
SIZES, QUICK_SIZES = (10**5, 10**6, 10**7), (10**4, 10**5)
STEPS, QUICK_STEPS = 30, 12
RANK_STEPS = 40
LONG = 1000  # steps of a training that is never over
TURNS, QUICK_TURNS = 8, 1
ROUNDS, QUICK_ROUNDS = 3, 1


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Slope of logarithms: 0 where the value does not depend on the size, 1 where it follows it."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def run(parts: Sequence[str], quick: bool) -> dict[str, Any]:
    """Measure some parts; figures of the others are None."""
    sizes, steps = (QUICK_SIZES, QUICK_STEPS) if quick else (SIZES, STEPS)
    rounds = QUICK_ROUNDS if quick else ROUNDS
    found: dict[str, Any] = dict.fromkeys(
        ("rss_growth", "loading_overhead", "weak_scaling_2", "start_s")
    )
    exponents: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="timellm-scaling-") as name:
        folder = Path(name)
        needed = sizes if "starts" in parts else sizes[-1:] if set(parts) - {"banks"} else ()
        corpora = {size: scaling_corpus.build(folder / f"corpus-{size}", size) for size in needed}
        if "starts" in parts:
            found |= _starts(folder, corpora, steps, rounds, exponents)
        if "loading" in parts or "ranks" in parts:
            file = str(scaling_start.write_config(folder, corpora[sizes[-1]], LONG))
        if "loading" in parts:
            turns = QUICK_TURNS if quick else TURNS
            (loading,) = run_on_ranks(scaling_loading.measure, 1, file, turns)
            print(f"loading: {loading}", flush=True)
            found |= {"loading_overhead": loading["loading_overhead"], "loading": loading}
        if "ranks" in parts:
            ranks = scaling_ranks.measure(file, QUICK_STEPS if quick else RANK_STEPS, rounds)
            found |= {"weak_scaling_2": ranks["weak_scaling_2"], "ranks": ranks}
            # More ranks than cores would tell of the cores.
            fitting = [one for one in RANKS if one <= (os.cpu_count() or 1)]
            speeds = [ranks[f"weak_scaling_{number}"] for number in fitting]
            if len(fitting) > 1:
                exponents["windows_per_s over ranks"] = exponent(fitting, speeds)
    if "banks" in parts:
        banks = scaling_banks.measure(quick)
        paper = scaling_banks.on_paper(list(banks.values())[-1]["entries_per_s_and_core"])
        found |= {"banks": banks, "on_paper": paper}
        for field in ("search_ms", "build_s", "rss_gib_reload"):
            entries, values = zip(*((b["entries"], b[field]) for b in banks.values()), strict=True)
            exponents[f"{field} over entries"] = exponent(entries, values)
    return found | {"exponents": exponents}


def _starts(
    folder: Path,
    corpora: dict[int, list[Path]],
    steps: int,
    rounds: int,
    exponents: dict[str, float],
) -> dict[str, Any]:
    seen: dict[int, list[Start]] = {size: [] for size in corpora}
    for number in range(rounds):
        for size, sources in corpora.items():
            own = folder / f"run-{size}-{number}"
            own.mkdir()
            seen[size].append(scaling_start.measure(own, sources, steps))
            print(f"{size} windows: {seen[size][-1]}", flush=True)
    found = {
        size: {
            field.name: float(np.median([getattr(start, field.name) for start in starts]))
            for field in fields(Start)
        }
        for size, starts in seen.items()
    }
    first, *_, last = found.values()
    for field in ("anonymous_gib", "windows_per_s", "start_s"):
        values = [start[field] for start in found.values()]
        exponents[f"{field} over windows"] = exponent(list(found), values)
    return {
        "rss_growth": last["anonymous_gib"] / first["anonymous_gib"],
        "start_s": last["start_s"],
        "corpora": found,
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Run the parts and print the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="Small corpora, few steps.")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    options = parser.parse_args(argv)
    found = run(options.parts, options.quick)
    about = {"quick": options.quick, "cores": os.cpu_count(), "commit": commit()}
    print(json.dumps(significant(found) | about))


if __name__ == "__main__":
    main()
