"""How long a training step takes on n ranks, from what it computes and what it sends.

A model with few terms, each of them a count divided by a rate; free of torch. What it leaves out
is listed in docs/scaling.md, beside what was measured.

* Compute: operations of a micro-batch (dist_train/flops.py) at the rate that a rank achieves.
* Collectives: what DeepSpeed 0.19 really does (read in its source; the tests count the bytes of a
  real run). ZeRO-1 and 2 all-reduce whole buckets of gradients although each rank keeps a part
  alone, 2 at every micro-batch; then the ranks gather the updated parameters. Only ZeRO-3 reduces
  and scatters; it gathers every parameter, frozen ones too. launch/network.py has their seconds.
* The memory: queries go to every rank of the group that shares the index, over gloo and the hosts'
  network, and an answer comes back from each. All of it is for the next batch, beside the step.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from launch.hardware import HARDWARE, Hardware, Link
from launch.network import Collective, Network
from launch.workload import SearchWork, Workload, workload_of

__all__ = [
    "HARDWARE", "Collective", "Hardware", "Link", "SearchWork", "StepTime", "Workload",
    "step_time", "workload_of",
]  # fmt: skip

PARAMETER_GROUPS = 2
"""Of the optimizer: matrices, which decay, and the rest; each is gathered and measured alone."""


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Where the time of a step goes."""

    ranks: int
    windows: int
    """Of the step, over all ranks."""

    compute_s: float
    """Forward and backward of a rank, waiting for a core included."""

    optimizer_s: float
    collectives: Mapping[str, Collective] = field(default_factory=dict)
    """Of the training, by name."""

    search_s: float
    """Of the memory, exchanges included; most often beside the step."""

    search_collectives: Mapping[str, Collective] = field(default_factory=dict)
    search_taken_s: float
    """What of it takes the time of the step itself: it runs on the same device, or core."""

    search_exposed_s: float
    """What it adds to the step: that, or all that is not over when the step is."""

    total_s: float

    @property
    def collectives_s(self) -> float:
        """All exchanges of the training, hidden or not."""
        return sum(one.seconds for one in self.collectives.values())

    @property
    def exposed_s(self) -> float:
        """What the exchanges of the training add to the step."""
        own = self.compute_s + self.optimizer_s + self.search_exposed_s
        return max(0.0, self.total_s - own)

    @property
    def search_is_hidden(self) -> bool:
        """Whether the search for the next batch is done before the step is."""
        return self.search_exposed_s == 0

    @property
    def windows_per_s(self) -> float:
        """Windows of all ranks in a second."""
        return self.windows / self.total_s

    def epoch_s(self, train_windows: int) -> float | None:
        """Seconds of one pass over the training windows, validation left out.

        None where they are less than one batch.
        """
        steps = train_windows // self.windows
        return steps * self.total_s if steps else None


def step_time(workload: Workload, hardware: Hardware, ranks: int) -> StepTime:
    """Put the terms together.

    Args:
        workload: Of one of the ranks.
        hardware: Alike for all of them; ``jitter`` is for launch/simulation.py.
        ranks: Of the job; nodes are filled one after the other.

    Raises:
        ValueError: Less than one rank.
    """
    if ranks < 1:
        raise ValueError(f"ranks must be at least 1, got {ranks}.")
    net = Network(hardware, ranks)
    compute = workload.micro_batches * (workload.flops / hardware.flops + hardware.micro_batch_s)
    optimizer = workload.optimizer_bytes / hardware.memory_bytes_per_s
    collectives = _training_collectives(workload, net)
    on_processor, exchanges = _search(workload, hardware, net)
    search = on_processor + sum(one.seconds for one in exchanges.values())

    # Ranks that share cores take turns on them, and so do their searches.
    stretch = net.stretch
    compute, optimizer = compute * stretch, optimizer * stretch
    beside = sum(one.seconds for one in collectives.values() if one.overlaps)
    after = sum(one.seconds for one in collectives.values() if not one.overlaps)
    alone = max(compute, beside) + optimizer + after
    taken = on_processor if hardware.search_on_device else 0.0
    if hardware.cores is not None:
        # The cores that the training leaves idle search first; for the rest it makes room.
        idle = hardware.cores - net.ranks_here / stretch
        rest = net.ranks_here * on_processor - idle * (compute + optimizer)
        taken = max(0.0, rest) / hardware.cores
    total = max(alone + taken, search)
    return StepTime(
        ranks=ranks,
        windows=workload.windows,
        compute_s=compute,
        optimizer_s=optimizer,
        collectives=collectives,
        search_s=search,
        search_collectives=exchanges,
        search_taken_s=taken,
        search_exposed_s=total - alone,
        total_s=total,
    )


def _training_collectives(workload: Workload, net: Network) -> dict[str, Collective]:
    if net.ranks == 1:
        return {}
    stage, micro, buckets = workload.zero_stage, workload.micro_batches, workload.buckets
    # Whether a signal came, asked after every step over gloo (dist_train/distributed.py).
    exchanges = {"stop flag": net.host_flag()}
    if stage == 3:
        return exchanges | {
            "all-gather parameters": net.all_gather(
                workload.gathered_bytes * micro, workload.gathers * micro, overlaps=True
            ),
            "reduce-scatter gradients": net.all_gather(
                workload.gradient_bytes * micro, buckets * micro, overlaps=True
            ),
            "norms": net.all_reduce(0, PARAMETER_GROUPS),
        }
    if stage == 0:
        return exchanges | {
            "all-reduce gradients": net.all_reduce(workload.gradient_bytes, buckets),
            "norms": net.all_reduce(0, 1),
        }
    times = micro if stage == 2 else 1
    return exchanges | {
        "all-reduce gradients": net.all_reduce(workload.gradient_bytes * times, buckets * times),
        "all-gather parameters": net.all_gather(workload.parameter_bytes, PARAMETER_GROUPS),
        # And whether a gradient overflowed, in half precision.
        "norms": net.all_reduce(0, PARAMETER_GROUPS + 1),
    }


def _search(
    workload: Workload, hardware: Hardware, net: Network
) -> tuple[float, dict[str, Collective]]:
    """Seconds of a processor, and the exchanges, of all searches of a step."""
    work = workload.search
    if work is None:
        return 0.0, {}
    group = {"rank": 1, "node": net.ranks_here, "world": net.ranks}[work.sharing]
    asked = work.queries * group  # every shard searches for the queries of all
    seconds = (
        # 1 / group of the entries, for the queries of all of it.
        work.queries * work.visited_bytes / hardware.scan_bytes_per_s
        + work.queries * work.search_flops / hardware.search_flops
        + asked * hardware.query_s
        + work.queries * work.value_bytes / hardware.memory_bytes_per_s
        + work.flops / hardware.flops
    )
    times = workload.micro_batches
    if group == 1:
        return seconds * times, {}
    return seconds * times, {
        "gather queries": net.host_exchange(work.queries * work.query_bytes, group, times),
        "return answers": net.host_exchange(work.queries * work.answer_bytes, group, times),
    }
