"""How long a training step takes on 1, 2 and 4 ranks of this machine: predicted and measured.

    python -m benchmarks.step_time [--quick] [--plot docs/scaling.png]

The prediction (launch/step_time.py) is made of what is measured beside it, each on its own: what a
rank computes alone on one core, in plain PyTorch; how much longer it takes while another one
computes too, which says how many cores there are; gloo's bandwidth and latency; a search in the
memory. What it predicts is a real DeepSpeed training (configs/quickstart.yaml, 8 windows per rank,
ZeRO-2, the memory shared by all ranks, one thread per rank). All are processes that hold still
while another has its turn; every round measures each of them, and predicts from its own
measurements alone.

predicted_ms_N, measured_ms_N   medians over the rounds
error_N                         median over the rounds of predicted / measured - 1
efficiency_1024                 simulated (launch/simulation.py): windows per second of 1024 such
                                ranks, 8 a node of 16 cores on the network of the H100 preset, over
                                1024 times one's, with the spread of the measured compute times and
                                a copy of the memory on every rank; _world: shared by all of them
traffic_2                       bytes that the collectives of a step are given, counted, and as
                                the model has them

Prints the figures and, last, one JSON line. --others 0.1 goes on, for 30 rounds at most, until in
ten of them the other processes of the machine use a tenth of a core or less, and keeps the quietest
ten. --quick makes few rounds with a tiny model: it shows that all works. --plot draws the figure of
docs/scaling.md, which no measurement enters, prints its tables, and ends.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jsonargparse import ArgumentError, ArgumentParser

from benchmarks.retrieval_leak import commit
from benchmarks.rounding import significant
from benchmarks.scaling_figure import save_scaling_figure, tables
from benchmarks.step_time_ranks import LARGE, SMALL, LoneRank, TrainingRank
from benchmarks.turns import Contestant
from dist_train import precision
from dist_train.config import RunConfig, fail, load_run_config
from dist_train.flops import MicroBatch
from dist_train.reproducibility import code_fingerprint
from dist_train.shapes import BackboneShape, shape_of
from launch.hardware import HARDWARE, NODE_RANKS, Hardware, Link
from launch.simulation import fit_spread, simulate
from launch.step_time import StepTime, Workload, step_time, workload_of
from model.backbone_files import locate_backbone
from model.config import PLAIN_ANCHOR

RANKS = (1, 2, 4)
ROUNDS, QUICK_ROUNDS = 10, 2
MOST_ROUNDS = 30  # where a quiet machine is waited for
STEPS = 4  # of a turn
CALLS = {SMALL: 40, LARGE: 6}  # of a collective
KINDS = ("all_reduce", "all_gather", "reduce_scatter")
FARTHEST = 1024
QUICKSTART = Path(__file__).parents[1] / "configs" / "quickstart.yaml"
COMMON = ("--deepspeed.zero_stage=2", "--bank.shard_group=world", "--train.batch_size=8",
          *PLAIN_ANCHOR)  # fmt: skip
TINY = ("--model.num_prototypes=20", "--model.d_model=16", "--model.d_ff=16",
        "--bank.bank_stride=8", "--backbone.llm_layers=1", "--data.seq_len=96",
        "--train.batch_size=2")  # fmt: skip

Round = dict[str, Any]


def run(quick: bool, others: float | None = None) -> dict[str, Any]:
    """Measure in turns and predict.

    Args:
        quick: A tiny model, few rounds.
        others: Rounds are made until so many are quieter, that is, other processes use fewer
            cores, or at most :data:`MOST_ROUNDS`; the quietest are kept. None: the first are.

    Raises:
        RuntimeError: A rank failed.
    """
    # Idle threads of one contestant must not spin on the core that another one runs on.
    os.environ |= {"OMP_WAIT_POLICY": "passive", "KMP_BLOCKTIME": "0"}
    dtype = precision.resolve_dtype("auto")
    overrides = [
        *COMMON,
        *(TINY if quick else ()),
        f"--train.precision={precision.dtype_name(dtype)}",
    ]
    config = load_run_config(QUICKSTART, overrides)
    micro = config.train.batch_size
    with tempfile.TemporaryDirectory(prefix="timellm-step-time-") as name, ExitStack() as stack:
        lone = [
            stack.enter_context(Contestant(f"lone {i}", LoneRank, _folder(name, i), config, micro))
            for i in range(2)
        ]
        groups = {
            ranks: Group(stack, _folder(name, f"group-{ranks}"), config, ranks) for ranks in RANKS
        }
        pids = [one.pid for one in (*lone, *(r for group in groups.values() for r in group.ranks))]
        _round(lone, groups)  # allocates
        wanted = QUICK_ROUNDS if quick else ROUNDS
        most = wanted if others is None else MOST_ROUNDS
        rounds: list[Round] = []
        while len(rounds) < most and sum(one["others"] <= (others or 0) for one in rounds) < wanted:
            before = _processor_seconds(pids)
            rounds.append(_round(lone, groups))
            all_s, own_s, wall_s = np.subtract(_processor_seconds(pids), before)
            rounds[-1]["others"] = float(all_s - own_s) / float(wall_s)
            print(
                f"round {len(rounds)}: others use {rounds[-1]['others']:.2f} cores", file=sys.stderr
            )
        made = len(rounds)
        rounds = sorted(rounds, key=lambda one: one["others"])[:wanted]
        facts = lone[0].call("facts")
        traffic = groups[2].call("traffic")[0]
    files = locate_backbone(config.backbone.name)
    model = Model(config, shape_of(files.config, config.backbone.llm_layers), facts, dtype.itemsize)
    assert model.workload(1).trained_weights == facts["trained"]
    return figures(model, rounds) | {
        "traffic_2": {"counted": traffic, "predicted": model.traffic(2)},
        "facts": facts,
        "rounds": len(rounds),
        "rounds_made": made,
        "others_cores": [one["others"] for one in rounds],
        "precision": precision.dtype_name(dtype),
    }


def _processor_seconds(pids: Sequence[int]) -> tuple[float, float, float]:
    """Seconds of all processes' work so far, of those and this one, and of the clock."""
    ticks = os.sysconf("SC_CLK_TCK")
    fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    user, nice, system = (int(field) / ticks for field in fields[:3])
    own = 0.0
    for pid in (os.getpid(), *pids):
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        own += (int(after_name[11]) + int(after_name[12])) / ticks
    return user + nice + system, own, time.monotonic()


class Group:
    """The ranks of one job, asked all together."""

    def __init__(self, stack: ExitStack, folder: Path, config: RunConfig, ranks: int) -> None:
        """Start them; blocks until all are ready."""
        self.ranks = [
            stack.enter_context(
                Contestant(
                    f"rank {i} of {ranks}", TrainingRank, folder, config, i, ranks, wait=False
                )
            )
            for i in range(ranks)
        ]
        for rank in self.ranks:
            stack.enter_context(rank)
            rank.answer()

    def call(self, method: str, *args: object) -> list[Any]:
        """Call a collective method on all of them; returns what each returned."""
        for rank in self.ranks:
            rank.ask(method, *args)
        return [rank.answer() for rank in self.ranks]


class Model:
    """The predictions of this machine."""

    def __init__(
        self, config: RunConfig, shape: BackboneShape, facts: dict[str, Any], item_bytes: int
    ) -> None:
        self.config, self.shape, self.facts, self.item_bytes = config, shape, facts, item_bytes

    def workload(
        self, ranks: int, sharing: Literal["rank", "world"] = "world", per_node: int = max(RANKS)
    ) -> Workload:
        """Of one rank, the same windows per rank on any number of them."""
        micro = self.config.train.batch_size
        config = replace(
            self.config,
            train=replace(self.config.train, batch_size=micro * ranks),
            bank=replace(self.config.bank, shard_group=sharing),
        )
        batch = MicroBatch(
            windows=micro,
            variates=self.facts["variates"],
            prompt_tokens=self.facts["prompt_tokens"],
        )
        return workload_of(
            config,
            self.shape,
            ranks,
            variates=batch.variates,
            bank_entries=self.facts["entries"],
            ranks_per_node=per_node,
            item_bytes=self.item_bytes,
            on_gpu=False,
            batch=batch,
        )

    def hardware(self, measured: Round) -> Hardware:
        """This machine as a round measured it."""
        work = self.workload(1)
        lone = measured["lone"]
        assert work.search is not None
        return this_machine(
            work,
            fit_link(measured["collectives"], measured["cores"]),
            compute_s=lone["compute_s"],
            search_s=lone["search_s"],
            memory_bytes_per_s=work.optimizer_bytes / lone["optimizer_s"],
            cores=measured["cores"],
        )

    def predict(self, measured: Round, ranks: int) -> StepTime:
        """A step of so many ranks on the machine as it was in a round."""
        return step_time(self.workload(ranks), self.hardware(measured), ranks)

    def traffic(self, ranks: int) -> dict[str, int]:
        """Bytes that the collectives of a step are given, as :func:`step_time` has them."""
        work = self.workload(ranks)
        assert work.search is not None
        return {
            "all_reduce": work.gradient_bytes * work.micro_batches,
            "all_gather_into_tensor": work.parameter_bytes // ranks,
            "all_gather": work.search.queries * work.search.query_bytes,
            "all_to_all_single": work.search.queries * work.search.answer_bytes * ranks,
        }


def _round(lone: Sequence[Contestant], groups: dict[int, Group]) -> Round:
    """Let everyone have a turn."""
    alone = lone[0].call("steps", STEPS)
    times = lone[0].call("compute_times", STEPS)
    for one in lone:
        one.ask("compute_times", STEPS)
    together = [float(np.mean(one.answer())) for one in lone]
    measured = {ranks: group.call("steps", STEPS)[0] for ranks, group in groups.items()}
    collectives = {
        (ranks, kind, size): max(groups[ranks].call("collective_s", kind, size, CALLS[size]))
        for ranks in RANKS[1:]
        for kind in KINDS
        for size in (SMALL, LARGE)
    }
    slower = max(1.0, float(np.mean(together)) / float(np.mean(times)))
    return {
        "lone": alone,
        "times": times,
        "cores": len(lone) / slower,
        "steps": measured,
        "collectives": collectives,
    }


def this_machine(
    work: Workload,
    link: Link,
    *,
    compute_s: float,
    search_s: float,
    memory_bytes_per_s: float,
    cores: float,
    jitter: float = 0.0,
) -> Hardware:
    """CPU ranks of one machine that meet by gloo, as they were measured.

    Args:
        work: Of the rank that was measured.
        link: Between any two of them.
        compute_s: Seconds of its forward and backward passes.
        search_s: Of its search in a memory without lists.
        memory_bytes_per_s: Of the optimizer.
        cores: That all ranks share.
        jitter: Spread of the compute times.
    """
    assert work.search is not None
    return Hardware(
        name="this machine",
        flops=work.flops / compute_s,
        memory_bytes_per_s=memory_bytes_per_s,
        memory_gib=0.0,
        ranks_per_node=max(RANKS),
        intra=link,
        inter=link,
        host=link,
        search_flops=work.search.queries * work.search.search_flops / search_s,
        scan_bytes_per_s=1.0,  # no lists here
        query_s=0.0,  # in the rate of the search
        cores=cores,
        trees=False,
        jitter=jitter,
    )


def fit_link(collectives: dict[tuple[int, str, int], float], cores: float) -> Link:
    """Fit bandwidth and latency to measured collectives.

    Each pair of a small and a large message gives both: medians over kinds and numbers of ranks,
    of the time that is left when ranks do not take turns on cores.

    Args:
        collectives: Seconds by (ranks, kind, bytes).
        cores: That the ranks share.
    """
    latencies, rates = [], []
    for (ranks, kind, size), large_s in collectives.items():
        if size != LARGE:
            continue
        stretch = max(1.0, ranks / cores)
        small_s = collectives[ranks, kind, SMALL] / stretch
        rounds = 2 if kind == "all_reduce" else 1
        latencies.append(small_s / rounds / (ranks - 1))
        sent = rounds * (ranks - 1) / ranks * LARGE
        rates.append(sent / max(1e-9, large_s / stretch - small_s))
    return Link(bytes_per_s=float(np.median(rates)), latency_s=float(np.median(latencies)))


def figures(model: Model, rounds: Sequence[Round]) -> dict[str, Any]:
    """Make the figures of the rounds."""
    found: dict[str, Any] = {}
    for ranks in RANKS:
        predictions = [model.predict(one, ranks) for one in rounds]
        predicted = np.array([one.total_s for one in predictions])
        measured = np.array([one["steps"][ranks] for one in rounds])
        found[f"predicted_ms_{ranks}"] = 1000 * float(np.median(predicted))
        found[f"measured_ms_{ranks}"] = 1000 * float(np.median(measured))
        found[f"error_{ranks}"] = float(np.median(predicted / measured)) - 1
        found[f"parts_ms_{ranks}"] = _parts(predictions)
    found["error_max"] = max(abs(found[f"error_{ranks}"]) for ranks in RANKS)
    # A round's times scatter by what ran beside it; the drift from round to round is not jitter.
    spread = float(np.median([fit_spread(one["times"]) for one in rounds]))
    hardware = [model.hardware(one) for one in rounds]
    middle = sorted(hardware, key=lambda one: one.flops)[len(hardware) // 2]
    fast = HARDWARE["h100"]
    cluster = replace(
        middle, ranks_per_node=NODE_RANKS, intra=fast.inter, inter=fast.inter, host=fast.host,
        cores=2.0 * NODE_RANKS, jitter=spread,
    )  # fmt: skip
    sharings: tuple[Literal["rank", "world"], ...] = ("rank", "world")
    for sharing in sharings:
        work, alone = (model.workload(n, sharing, NODE_RANKS) for n in (FARTHEST, 1))
        far = simulate(work, cluster, FARTHEST, alone=alone)
        found["efficiency_1024" + ("_world" if sharing == "world" else "")] = far.efficiency
    return found | {
        "spread": spread,
        "cores_effective": float(np.median([one["cores"] for one in rounds])),
        "gflop_per_s": float(np.median([one.flops for one in hardware])) / 1e9,
        "link_gb_per_s": float(np.median([one.intra.bytes_per_s for one in hardware])) / 1e9,
        "link_latency_us": float(np.median([one.intra.latency_s for one in hardware])) * 1e6,
        "lone_ms": {
            name: 1000 * float(np.median([one["lone"][name] for one in rounds]))
            for name in rounds[0]["lone"]
        },
        "collectives_ms": {
            f"{kind} {size} B on {ranks}": 1000
            * float(np.median([one["collectives"][ranks, kind, size] for one in rounds]))
            for ranks, kind, size in rounds[0]["collectives"]
        },
        "measured_ms_by_round": {
            ranks: [round(1000 * one["steps"][ranks], 1) for one in rounds] for ranks in RANKS
        },
    }


def _parts(predictions: Sequence[StepTime]) -> dict[str, float]:
    """What the predicted steps are made of, medians in ms."""
    parts = {
        "compute": [one.compute_s for one in predictions],
        "optimizer": [one.optimizer_s for one in predictions],
        "search": [one.search_s for one in predictions],
        "search exposed": [one.search_exposed_s for one in predictions],
    }
    for name in predictions[0].collectives:
        parts[name] = [one.collectives[name].seconds for one in predictions]
    return {name: 1000 * float(np.median(values)) for name, values in parts.items()}


def _folder(parent: str, name: object) -> Path:
    folder = Path(parent) / str(name)
    folder.mkdir()
    return folder


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit code: 0 done, 2 refused with a message."""
    parser = ArgumentParser(
        prog="python -m benchmarks.step_time",
        exit_on_error=False,
        description="A step on 1, 2 and 4 ranks, predicted and measured.",
    )
    parser.add_argument("--quick", action="store_true", help="A tiny model, two rounds.")
    parser.add_argument(
        "--others", type=float, help="Wait for rounds in which other processes use fewer cores."
    )
    parser.add_argument("--plot", type=Path, help="Draw the figure of docs/scaling.md, and end.")
    began = time.monotonic()
    code = {"commit": commit(), "code": code_fingerprint()}
    try:
        options = parser.parse_args(argv)
        if options.plot is not None:
            save_scaling_figure(options.plot)
            print(tables())
            return 0
        found = run(options.quick, options.others)
    except (ArgumentError, ValueError, OSError, RuntimeError) as error:
        return fail(error)
    for name, value in found.items():
        print(f"{name}: {json.dumps(value, indent=1)}", file=sys.stderr)
    about = {
        "quick": options.quick,
        "seconds": round(time.monotonic() - began, 1),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "deepspeed": metadata.version("deepspeed"),
    }
    print(json.dumps({**significant(found), **about, **code}), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
