"""How fast the ranks exchange tensors: all together, inside each node, and across nodes.

Bandwidths as nccl-tests defines them (its doc/PERFORMANCE.md), of S bytes in t seconds over n
ranks: algorithm bandwidth S / t; bus bandwidth 2 (n - 1) / n times that for an all-reduce, and
(n - 1) / n times for an all-gather, whose S is what every rank has at the end. Bus bandwidth does
not depend on n: it is what one link carries, and compares with what the hardware can.
"""

import time
from collections.abc import Sequence
from typing import Any

import torch

from dist_train import distributed
from launch.doctor.check import Visit
from launch.doctor.finding import Finding
from launch.doctor.meeting import Arrival
from launch.doctor.report import Report

SCOPES = ("all ranks", "inside a node", "across nodes")
OPERATIONS = ("all-reduce", "all-gather")
SLOW_GB_PER_S = 0.1
"""A little less than what Ethernet of 1 Gbit/s carries."""

_SECONDS = 0.5  # that the repetitions take together
_MOST = 50
REMEDY = (
    "Set NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME to the interface of the nodes' fast network; "
    "NCCL_DEBUG=INFO tells which path NCCL takes, `nvidia-smi topo -m` how the GPUs are joined."
)


def examine(visit: Visit) -> dict[str, Any]:
    """Join the process group, and time both operations in all scopes; collective."""
    # The limit of the check comes first: NCCL would end the process at its own.
    distributed.initialize_process_group(2 * visit.options.timeout_s, visit.meeting.store)
    timed: list[dict[str, Any]] = []
    for scope in SCOPES:
        parts = partition(visit.ranks, scope)
        group = distributed.split_ranks(parts)
        own = next((ranks for ranks in parts if visit.rank in ranks), [])
        for operation in OPERATIONS if group is not None else ():
            for mib in visit.options.size_mib:
                seconds = _time(group, operation, mib, len(own))
                timed.append(
                    {"scope": scope, "ranks": own, "operation": operation, "mib": mib,
                     "seconds": seconds}
                )  # fmt: skip
    return {"timed": timed, "backend": "nccl" if torch.cuda.is_available() else "gloo"}


def partition(ranks: Sequence[Arrival], scope: str) -> list[list[int]]:
    """Say who exchanges with whom.

    Returns:
        The ranks of each group. Across nodes: the first of every node, the second, and so on.
    """
    nodes: dict[str, list[int]] = {}
    for arrival in sorted(ranks, key=lambda arrival: arrival.rank):
        nodes.setdefault(arrival.node, []).append(arrival.rank)
    if scope == "all ranks":
        return [sorted(arrival.rank for arrival in ranks)]
    if len(nodes) == 1:
        return []  # that of all ranks is inside a node
    if scope == "inside a node":
        return list(nodes.values())
    most = max(map(len, nodes.values()))
    if most == 1:
        return []  # that of all ranks is across nodes
    return [[own[i] for own in nodes.values() if i < len(own)] for i in range(most)]


def bandwidths(operation: str, mib: float, seconds: float, ranks: int) -> tuple[float, float]:
    """Algorithm and bus bandwidth in GB/s (1e9 bytes)."""
    algorithm = mib * 2**20 / seconds / 1e9
    factor = 2 if operation == "all-reduce" else 1
    return algorithm, algorithm * factor * (ranks - 1) / ranks


def judge(reports: Sequence[Report], visit: Visit) -> list[Finding]:
    """One row per operation and scope: the slowest group, of its ranks the slowest."""
    findings = []
    backend = reports[0].facts["backend"]
    for operation in OPERATIONS:
        for scope in SCOPES:
            entries = [
                (entry, report.node)
                for report in reports
                for entry in report.facts["timed"]
                if (entry["operation"], entry["scope"]) == (operation, scope)
            ]
            if entries:
                findings.append(_row(operation, scope, entries, backend))
    if findings:
        return findings
    return [Finding(check="links", status="skip", found="one rank has nobody to exchange with")]


def _row(
    operation: str, scope: str, entries: Sequence[tuple[dict[str, Any], str]], backend: str
) -> Finding:
    said: list[str] = []
    numbers: dict[str, float] = {}
    slow = False
    for mib in dict.fromkeys(entry["mib"] for entry, _ in entries):
        slowest, node = max(
            ((entry, node) for entry, node in entries if entry["mib"] == mib),
            key=lambda item: float(item[0]["seconds"]),
        )
        seconds, count = float(slowest["seconds"]), len(slowest["ranks"])
        algorithm, bus = bandwidths(operation, mib, seconds, count)
        where = "" if scope == "all ranks" else f", slowest of ranks {slowest['ranks']}"
        where += f" on {node}" if scope == "inside a node" else ""
        said.append(
            f"{mib:g} MiB in {1000 * seconds:.2f} ms: {algorithm:.2f} GB/s, bus {bus:.2f} GB/s"
            f"{where}"
        )
        size = f"{mib:g}_mib"
        numbers |= {
            f"{size}_ms": round(1000 * seconds, 4),
            f"{size}_algorithm_gb_per_s": round(algorithm, 4),
            f"{size}_bus_gb_per_s": round(bus, 4),
        }
        slow |= bus < SLOW_GB_PER_S and mib >= 1  # a short message measures the way there
    return Finding(
        check=f"{operation}, {scope}",
        status="warn" if slow else "ok",
        found=f"{backend}, {'; '.join(said)}",
        remedy=REMEDY if slow else "",
        numbers=numbers,
    )


def _time(group: Any, operation: str, mib: float, ranks: int) -> float:
    """Time one exchange, in seconds, as the mean of several.

    Args:
        group: Of this rank.
        operation: One of :data:`OPERATIONS`.
        mib: Size of what every rank has at the end.
        ranks: Size of the group.

    Raises:
        RuntimeError: What arrives is not what was sent.
    """
    device = distributed.device()
    own = distributed.rank() + 1
    if operation == "all-reduce":
        tensor = torch.full((max(1, int(mib * 2**20 / 4)),), float(own), device=device)

        def exchange() -> None:
            distributed.all_reduce_in(group, tensor)
    else:
        share = max(1, int(mib * 2**20 / 4 / ranks))
        tensor = torch.full((share,), float(own), device=device)
        gathered = torch.empty(share * ranks, device=device)

        def exchange() -> None:
            distributed.all_gather_in(group, gathered, tensor)

    exchange()  # connects
    _check_sent(group, operation, tensor if operation == "all-reduce" else gathered, ranks, own)
    tensor.fill_(0.0)  # sums of sums would overflow
    began = _now(device)
    exchange()
    once = torch.tensor([_now(device) - began], device=device)
    distributed.all_reduce_in(group, once)  # so that all repeat it as often
    times = max(1, min(_MOST, int(_SECONDS * ranks / float(once))))
    began = _now(device)
    for _ in range(times):
        exchange()
    return (_now(device) - began) / times


def _check_sent(group: Any, operation: str, received: torch.Tensor, ranks: int, own: int) -> None:
    """Compare what has arrived with what the ranks have sent: their numbers, from 1."""
    members = torch.zeros(ranks, device=received.device)
    distributed.all_gather_in(group, members, torch.tensor([float(own)], device=received.device))
    if operation == "all-reduce":
        wrong = received != members.sum()
    else:
        wrong = received.view(ranks, -1) != members[:, None]
    if bool(wrong.any()):
        raise RuntimeError(
            f"the {operation} gave wrong numbers: {int(wrong.sum())} of {wrong.numel()} arrived "
            "altered"
        )


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
