"""A training step of this project beside the published Time-LLM's, in time and memory.

    python -m benchmarks.step --reference PATH [--compile] [--quick]

PATH is a clone of github.com/KimMeen/Time-LLM; without it our side alone is measured and what
compares is null. Both get the same GPT-2 (6 blocks, random weights, benchmarks/random_gpt2.py), the
same tokenizer and windows: 4 windows of 7 variates are 28 rows, 512 -> 96 steps. A step is forward,
backward and Adam; writing and tokenising prompts is in the time of both. Ours has neither trend
router nor memory, so it is the same model, and tokens of both are printed: theirs has more, as it
writes each statistic with all digits. Each contestant is a process that holds still while another
one has its turn; ratios are medians of the ratios of a round. On a CPU both compute in float32, and
ours once more in bf16 where train.precision=auto would choose it; on a GPU both compute in bf16.

speedup_spec, speedup_prefix_cached   their time / ours, by model.token_order
speedup_spec_vocabulary   the same with model.prototype_map=vocabulary, to see what that key does
compiled             with --compile: time of a step whose blocks went through torch.compile / ours
speedup_*_bf16       the same for our bf16 step on a CPU, against their float32
peak_memory_ratio    largest memory of our steps, worse of both orders / theirs. Resident memory of
                     the whole process, on a GPU what is allocated; above_idle is the same of what
                     a step adds to the memory before it
flops_share          model FLOPs / step time / measured FLOP/s of a large matrix product of the
                     same type in the same process, order spec
prototype_share      text prototypes alone (forward, backward, update of their parameters), timed
                     after each step / time of that step, order spec

Prints the figures and, last, one JSON line. --quick takes a tiny model: it shows that all works.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from jsonargparse import ArgumentError, ArgumentParser

from benchmarks.random_gpt2 import write_random_gpt2
from benchmarks.retrieval_leak import commit
from benchmarks.rounding import significant
from benchmarks.step_ours import OurStep
from benchmarks.step_reference import ReferenceStep
from benchmarks.step_setting import PROMPT_WORDS, QUICK, Setting
from benchmarks.turns import Contestant
from dist_train import precision
from dist_train.config import fail
from dist_train.distributed import device
from dist_train.reproducibility import code_fingerprint

ROUNDS, QUICK_ROUNDS, GPU_ROUNDS = 7, 2, 30
ORDERS = ("spec", "prefix_cached")
COMPILED = "_compiled"
HEADLINES = (
    "speedup_spec",
    "speedup_prefix_cached",
    "peak_memory_ratio",
    "flops_share",
    "prototype_share",
    "speedup_spec_bf16",
    "speedup_prefix_cached_bf16",
)

Rounds = list[dict[str, float]]


def run(reference: Path | None, quick: bool, compiled: bool = False) -> dict[str, Any]:
    """Measure all contestants in turn; with ``compiled`` those of torch.compile too.

    Raises:
        ValueError: ``reference`` is no clone of the published code.
        RuntimeError: A contestant failed.
    """
    if reference is not None and not (reference / "models" / "TimeLLM.py").is_file():
        raise ValueError(
            f"--reference {reference}: has no models/TimeLLM.py: give the folder of a clone of "
            "github.com/KimMeen/Time-LLM."
        )
    setting = QUICK if quick else Setting()
    on_gpu = device().type == "cuda"
    dtype = torch.bfloat16 if on_gpu else torch.float32
    extra_bf16 = not on_gpu and precision.resolve_dtype("auto") == torch.bfloat16
    rounds = QUICK_ROUNDS if quick else GPU_ROUNDS if on_gpu else ROUNDS
    with tempfile.TemporaryDirectory(prefix="timellm-step-") as name, ExitStack() as stack:
        folder = Path(name)
        write_random_gpt2(
            folder,
            width=setting.width,
            layers=setting.layers,
            heads=setting.backbone_heads,
            vocab_size=setting.vocab_size,
            text=PROMPT_WORDS,
        )
        contestants = []
        if reference is not None:
            theirs = (reference.resolve(), folder, setting, dtype)
            contestants.append(Contestant("reference", ReferenceStep, *theirs))
        for suffix, our_dtype in [("", dtype), ("_bf16", torch.bfloat16)][: 1 + extra_bf16]:
            contestants += [
                Contestant(order + suffix, OurStep, folder, setting, order, our_dtype)
                for order in ORDERS
            ]
        if compiled:
            contestants += [
                Contestant(
                    order + COMPILED, OurStep, folder, setting, order, dtype, "factored", True
                )
                for order in ORDERS
            ]
        published_map = (folder, setting, "spec", dtype, "vocabulary")
        contestants.append(Contestant("spec_vocabulary", OurStep, *published_map))
        for contestant in contestants:
            stack.enter_context(contestant)
        measured = _take_turns(contestants, rounds)
        facts = {contestant.name: contestant.call("facts") for contestant in contestants}
    return figures(measured, facts) | {"precision": precision.dtype_name(dtype)}


def _take_turns(contestants: Sequence[Contestant], rounds: int) -> dict[str, Rounds]:
    """Let all make a step, round by round; the first round warms up and is not kept."""
    measured: dict[str, Rounds] = {contestant.name: [] for contestant in contestants}
    for number in range(rounds + 1):
        for contestant in contestants:
            taken = contestant.call("step", number)
            if contestant.name != "reference":
                taken["prototype_seconds"] = contestant.call("prototype_seconds")
                taken["machine_flops"] = contestant.call("matrix_flops")
            if number > 0:
                measured[contestant.name].append(taken)
    return measured


def figures(
    measured: Mapping[str, Rounds], facts: Mapping[str, Mapping[str, float]]
) -> dict[str, Any]:
    """Make the headlines and what they are made of; a headline without its contestants is None.

    Args:
        measured: Of each contestant, what its ``step`` returned in each round; of ours
            ``prototype_seconds`` and ``machine_flops`` too.
        facts: Of each contestant, what its ``facts`` returned.
    """
    found: dict[str, Any] = dict.fromkeys(HEADLINES)
    seconds = {
        name: np.array([one["seconds"] for one in rounds]) for name, rounds in measured.items()
    }
    peaks = {name: max(one["peak_gib"] for one in rounds) for name, rounds in measured.items()}
    added = {
        name: max(one["peak_gib"] - one["idle_gib"] for one in rounds)
        for name, rounds in measured.items()
    }
    shares, prototypes, rates = {}, {}, {}
    for name in measured.keys() - {"reference"}:
        machine, alone = (
            np.array([one[key] for one in measured[name]])
            for key in ("machine_flops", "prototype_seconds")
        )
        shares[name] = float(np.median(facts[name]["flops"] / seconds[name] / machine))
        prototypes[name] = float(np.median(alone / seconds[name]))
        rates[name] = float(np.median(machine)) / 1e9
        if "reference" in seconds:
            found[f"speedup_{name}"] = float(np.median(seconds["reference"] / seconds[name]))
    found["flops_share"], found["prototype_share"] = shares["spec"], prototypes["spec"]
    if "reference" in peaks:
        found["peak_memory_ratio"] = max(peaks[order] for order in ORDERS) / peaks["reference"]
        found["peak_above_idle_ratio"] = max(added[order] for order in ORDERS) / added["reference"]
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    found["compiled"] = {
        order: float(np.median(seconds[order + COMPILED] / seconds[order]))
        for order in ORDERS
        if order + COMPILED in seconds
    }
    return found | {
        "step_s": medians,
        "step_s_fastest": {name: float(values.min()) for name, values in seconds.items()},
        "prompt_s": {
            name: float(np.median([one["prompt_seconds"] for one in measured[name]]))
            for name in shares
        },
        "peak_gib": peaks,
        "peak_above_idle_gib": added,
        "facts": {name: dict(values) for name, values in facts.items()},
        "gflop_per_s": {name: facts[name]["flops"] / medians[name] / 1e9 for name in shares},
        "machine_gflop_per_s": rates,
        "flops_shares": shares,
        "prototype_shares": prototypes,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit code: 0 done, 2 refused with a message."""
    parser = ArgumentParser(
        prog="python -m benchmarks.step",
        exit_on_error=False,
        description="A training step beside the published Time-LLM's.",
    )
    parser.add_argument("--reference", type=Path, help="Clone of github.com/KimMeen/Time-LLM.")
    parser.add_argument("--compile", action="store_true", help="Our blocks compiled, too.")
    parser.add_argument("--quick", action="store_true", help="A tiny model, two rounds.")
    began = time.monotonic()
    code = {"commit": commit(), "code": code_fingerprint()}
    try:
        options = parser.parse_args(argv)
        found = run(options.reference, options.quick, options.compile)
    except (ArgumentError, ValueError, OSError, RuntimeError) as error:
        return fail(error)
    for name, value in found.items():
        print(f"{name}: {json.dumps(value, indent=1)}", file=sys.stderr)
    on_gpu = device().type == "cuda"
    about = {
        "quick": options.quick,
        "seconds": round(time.monotonic() - began, 1),
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    print(json.dumps({**significant(found), **about, **code}), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
