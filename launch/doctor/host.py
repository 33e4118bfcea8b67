"""What a node allows its processes: memory, open files, shared memory."""

import os
import resource
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dist_train.process_memory import host_limit
from launch.doctor.check import Visit
from launch.doctor.finding import Finding
from launch.doctor.report import Report

CHECK = "host"
LEAST_FILES = 1024
"""Open files per process: a rank, its data workers and its connections to many ranks."""

LEAST_SHARED_GIB = 0.5
"""Of /dev/shm: data workers and NCCL exchange tensors there; a container has 64 MiB by default."""

LEAST_MEMORY_GIB = 4.0
"""Of host memory per node; the quickstart's two ranks use some 2 GiB each."""

_SHARED = Path("/dev/shm")
_INFINIBAND = Path("/sys/class/infiniband")


def examine(visit: Visit) -> dict[str, Any]:
    """Read the limits of this process and of its node."""
    limit, kind = host_limit()
    return {
        "memory_gib": limit / 2**30,
        "memory_of": kind,
        "files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        "locked": resource.getrlimit(resource.RLIMIT_MEMLOCK)[0],
        "infiniband": _INFINIBAND.is_dir() and any(_INFINIBAND.iterdir()),
        "shared_gib": shutil.disk_usage(_SHARED).free / 2**30 if _SHARED.is_dir() else None,
        "load": os.getloadavg()[0],
        "cores": os.cpu_count(),
    }


def judge(reports: Sequence[Report], visit: Visit) -> list[Finding]:
    """Warn of a node on which a job would run into a limit."""
    findings = [finding for report in reports for finding in _of_node(report)]
    if findings:
        return findings
    least = min(reports, key=lambda report: float(report.facts["memory_gib"])).facts
    found = (
        f"{least['memory_gib']:.1f} GiB of memory ({least['memory_of']}), {least['files']} open "
        f"files, load {least['load']:.1f} on {least['cores']} cores"
    )
    return [Finding(check=CHECK, status="ok", found=found)]


def _of_node(report: Report) -> list[Finding]:
    facts = report.facts
    problems = []
    if 0 <= facts["files"] < LEAST_FILES:
        problems.append((f"{facts['files']} open files per process", "Raise it: ulimit -n 65536."))
    if facts["shared_gib"] is not None and facts["shared_gib"] < LEAST_SHARED_GIB:
        problems.append(
            (
                f"{1024 * facts['shared_gib']:.0f} MiB free in {_SHARED}",
                "Give a container more: --shm-size=8g, or --ipc=host; or set data.num_workers=0.",
            )
        )
    if facts["memory_gib"] < LEAST_MEMORY_GIB:
        problems.append(
            (
                f"{facts['memory_gib']:.1f} GiB of memory ({facts['memory_of']})",
                "Ask for more (srun --mem, ulimit -v), or start fewer ranks per node.",
            )
        )
    if facts["infiniband"] and facts["locked"] not in (resource.RLIM_INFINITY, -1):
        problems.append(
            (
                f"InfiniBand, and only {facts['locked'] // 2**20} MiB of locked memory",
                "Set ulimit -l unlimited for this user, and in Slurm's PropagateResourceLimits.",
            )
        )
    return [
        Finding(check=CHECK, status="warn", found=f"{report.node}: {found}", remedy=remedy)
        for found, remedy in problems
    ]
