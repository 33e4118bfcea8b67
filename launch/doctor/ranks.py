"""Whether the ranks that came are those that were announced."""

from collections import Counter
from collections.abc import Sequence

from launch.doctor.finding import Finding
from launch.doctor.meeting import Arrival
from launch.doctor.report import Report, group_by, name_all

CHECK = "ranks"
_NAMED = 16  # ranks that are named one by one


def judge(arrivals: Sequence[Arrival], expected: int | None) -> list[Finding]:
    """Compare those that came with what they announce and with what is expected.

    Args:
        arrivals: All of them.
        expected: ``--world_size``.

    Returns:
        Failures; where there is none, one row that says how many came.
    """
    reports = [
        Report(rank=a.rank, node=a.node, facts={"announced": a.world_size, "pid": a.pid})
        for a in arrivals
    ]
    announced = group_by(reports, lambda report: int(report.facts["announced"]))
    findings = _disagreeing(announced)
    size = max(announced)
    findings += [*_missing(reports, size), *_repeated(reports), *_beyond(reports, size)]
    if expected is not None and set(announced) != {expected}:
        findings.append(
            Finding(
                check=CHECK,
                status="fail",
                found=f"--world_size {expected}, but {size} ranks are announced (WORLD_SIZE)",
                remedy=f"Start {expected} ranks: torchrun --nproc_per_node, deepspeed --num_gpus, "
                "or srun --ntasks; or leave --world_size out.",
            )
        )
    findings += _same_local_rank(arrivals)
    if findings:
        return findings
    nodes = len({report.node for report in reports})
    return [Finding(check=CHECK, status="ok", found=f"{size} of {size}, on {_count(nodes)}")]


def _disagreeing(announced: dict[int, list[Report]]) -> list[Finding]:
    if len(announced) == 1:
        return []
    said = "; ".join(f"{size} on {name_all(ranks)}" for size, ranks in announced.items())
    return [
        Finding(
            check=CHECK,
            status="fail",
            found=f"the ranks disagree on WORLD_SIZE: {said}",
            remedy="Start all ranks by the same command, with the same number of nodes and tasks.",
        )
    ]


def _missing(reports: Sequence[Report], size: int) -> list[Finding]:
    missing = sorted(set(range(size)) - {report.rank for report in reports})
    if not missing:
        return []
    named = ", ".join(map(str, missing[:_NAMED])) + (", ..." if len(missing) > _NAMED else "")
    plural = "s" if len(missing) > 1 else ""
    return [
        Finding(
            check=CHECK,
            status="fail",
            found=f"rank{plural} {named} of {size} never arrived; those that did: "
            f"{name_all(reports)}",
            remedy="Look at the output of what never arrived: it says which address it cannot "
            "reach. If it says nothing it was not started: compare WORLD_SIZE with the number "
            "of nodes and tasks.",
        )
    ]


def _repeated(reports: Sequence[Report]) -> list[Finding]:
    by_rank = group_by(reports, lambda report: report.rank)
    return [
        Finding(
            check=CHECK,
            status="fail",
            found=f"RANK={rank} came {len(same)} times: "
            + ", ".join(f"process {one.facts['pid']} on {one.node}" for one in same),
            remedy="Give every process a RANK of its own; a second job at the same MASTER_PORT "
            "needs another port.",
        )
        for rank, same in by_rank.items()
        if len(same) > 1
    ]


def _beyond(reports: Sequence[Report], size: int) -> list[Finding]:
    beyond = [report for report in reports if report.rank >= size]
    if not beyond:
        return []
    return [
        Finding(
            check=CHECK,
            status="fail",
            found=f"{name_all(beyond)}: the last of {size} ranks is {size - 1}",
            remedy="Count RANK from 0, or raise WORLD_SIZE.",
        )
    ]


def _same_local_rank(arrivals: Sequence[Arrival]) -> list[Finding]:
    places = Counter((arrival.node, arrival.number_on_node) for arrival in arrivals)
    if len({arrival.rank for arrival in arrivals}) < len(arrivals):
        return []  # said already
    return [
        Finding(
            check=CHECK,
            status="fail",
            found=f"LOCAL_RANK={number} came {count} times on {node}: they would share a GPU",
            remedy="Count LOCAL_RANK from 0 on each node.",
        )
        for (node, number), count in places.items()
        if count > 1
    ]


def _count(nodes: int) -> str:
    return f"{nodes} node{'s' if nodes > 1 else ''}"
