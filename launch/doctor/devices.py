"""What each rank computes on."""

import os
from collections.abc import Sequence
from typing import Any

import torch

from launch.doctor.check import Visit
from launch.doctor.finding import Finding
from launch.doctor.report import Report, group_by, name_all

CHECK = "devices"
_LEAST_FREE = 0.9  # of a GPU's memory, before a job


def examine(visit: Visit) -> dict[str, Any]:
    """Look at the GPU of this rank, or at its cores."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    number = visit.meeting.arrival.local_rank
    cores = len(os.sched_getaffinity(0))
    facts: dict[str, Any] = {"gpus": count, "local_rank": number, "cores": cores}
    if number < count:
        properties = torch.cuda.get_device_properties(number)
        free, total = torch.cuda.mem_get_info(number)
        facts |= {
            "name": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "free_gib": free / 2**30,
            "total_gib": total / 2**30,
        }
    return facts


def judge(reports: Sequence[Report], visit: Visit) -> list[Finding]:
    """Fail where a rank has no GPU of its own; warn of used and of unequal ones."""
    findings = []
    without = [r for r in reports if 0 < r.facts["gpus"] <= r.facts["local_rank"]]
    if without:
        gpus = without[0].facts["gpus"]
        findings.append(
            Finding(
                check=CHECK,
                status="fail",
                found=f"{name_all(without)}: LOCAL_RANK is {gpus} or more, and {gpus} GPUs are "
                "visible there",
                remedy="Start as many ranks per node as it has GPUs, and let every rank see all "
                "GPUs of its node (no --gpus-per-task).",
            )
        )
    used = [r for r in reports if r.facts.get("free_gib", 1) < _LEAST_FREE * _total(r)]
    if used:
        said = ", ".join(f"{r.who} {r.facts['free_gib']:.1f} of {_total(r):.1f} GiB" for r in used)
        findings.append(
            Finding(
                check=CHECK,
                status="warn",
                found=f"the memory of a GPU is in use already; free are {said}",
                remedy="nvidia-smi says by whom; end it, or choose other GPUs with "
                "CUDA_VISIBLE_DEVICES.",
            )
        )
    groups = group_by(reports, _describe)
    said = "; ".join(f"{what} on {name_all(ranks)}" for what, ranks in groups.items())
    if len(groups) > 1:
        remedy = "The slowest rank sets the pace of all: use nodes of one kind."
        findings.append(Finding(check=CHECK, status="warn", found=said, remedy=remedy))
    elif not findings:
        findings.append(Finding(check=CHECK, status="ok", found=said))
    return findings


def _total(report: Report) -> float:
    return float(report.facts.get("total_gib", 0))


def _describe(report: Report) -> str:
    facts = report.facts
    if "name" not in facts:
        return f"CPU, {facts['cores']} cores"
    return f"{facts['name']}, {facts['total_gib']:.0f} GiB, capability {facts['capability']}"
