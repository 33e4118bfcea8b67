"""Space and speed of the disk that the run's folder is on, or will be."""

import errno
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dist_train.config import ConfigError
from dist_train.run_folder import nearest_folder
from launch.doctor.check import Visit
from launch.doctor.finding import Finding, refusal
from launch.doctor.report import Report

CHECK = "disk"
SLOW_MIB_PER_S = 20.0
_BLOCK = os.urandom(1 << 20)  # what cannot be compressed
_FULL = {errno.ENOSPC: "No space left on device", errno.EDQUOT: "Disk quota exceeded"}


def examine(visit: Visit) -> dict[str, Any]:
    """Write a file that has no name, or loses it at once, and let it go."""
    try:
        folder = nearest_folder(visit.config)
    except ConfigError as error:
        return {"refused": str(error)}
    status = os.statvfs(folder)
    facts: dict[str, Any] = {
        "folder": str(folder),
        "free_gib": shutil.disk_usage(folder).free / 2**30,
        # Of many network disks both are 0: they do not count names.
        "names_left": status.f_favail if status.f_files else None,
    }
    wanted = visit.options.write_mib / 1024
    if facts["free_gib"] < max(wanted, visit.options.free_gib):
        return facts  # others may need what is left
    try:
        facts["mib_per_s"] = write_speed(folder, visit.options.write_mib)
    except OSError as error:
        facts["errno"], facts["said"] = error.errno, error.strerror or str(error)
    return facts


def write_speed(folder: Path, size_mib: float) -> float:
    """Write so much into a new file of a folder, wait until it is on the disk, delete it.

    Returns:
        MiB per second.

    Raises:
        OSError: It cannot be written.
    """
    left = int(size_mib * 2**20)
    with tempfile.TemporaryFile(dir=folder, prefix=".timellm-doctor-", buffering=0) as file:
        began = time.monotonic()
        while left > 0:
            left -= file.write(_BLOCK[:left])
        os.fsync(file.fileno())
        return size_mib / (time.monotonic() - began)


def judge(reports: Sequence[Report], visit: Visit) -> list[Finding]:
    """Judge the disk of each node; where all are well, that of the slowest is the row."""
    findings = [_of_node(report, visit, len(reports) > 1) for report in reports]
    slowest = min(findings, key=lambda finding: finding.numbers.get("mib_per_s", 0.0))
    return [finding for finding in findings if finding.status != "ok"] or [slowest]


def _of_node(report: Report, visit: Visit, many: bool) -> Finding:
    facts = report.facts
    where = f" on {report.node}" if many else ""
    if "refused" in facts:
        finding = refusal(CHECK, facts["refused"])
        return _finding("fail", finding.found + where, finding.remedy)
    place, free = f"{facts['folder']}{where}", facts["free_gib"]
    space = f"{free:.1f} GiB free" if free >= 0.1 else f"{1024 * free:.1f} MiB free"
    remedy = "Free some space there, or name another folder: --runs_dir."
    wanted = max(visit.options.write_mib / 1024, visit.options.free_gib)
    if facts["names_left"] == 0:
        return _finding("fail", f"{place} is full: no more files can be made", remedy)
    if free < wanted:
        full = "is full: " if free * 2**30 < 2**20 else "has "
        return _finding("fail", f"{place} {full}{space}, {wanted:.1f} GiB are needed", remedy)
    if "errno" in facts:
        is_full = facts["errno"] in _FULL
        other = "Give the user of the job the right to write there, or name another: --runs_dir."
        return _finding(
            "fail",
            f"{place} cannot be written to: {_FULL.get(facts['errno'], facts['said'])}",
            remedy if is_full else other,
        )
    speed = facts["mib_per_s"]
    numbers = {"free_gib": round(free, 3), "mib_per_s": round(speed, 1)}
    found = f"{place}: {space}, {speed:.0f} MiB/s with fsync"
    if speed < SLOW_MIB_PER_S:
        remedy = "Checkpoints will take long: name a faster disk with --runs_dir."
        return _finding("warn", found, remedy, numbers)
    return _finding("ok", found, "", numbers)


def _finding(
    status: Any, found: str, remedy: str, numbers: dict[str, float] | None = None
) -> Finding:
    return Finding(check=CHECK, status=status, found=found, remedy=remedy, numbers=numbers or {})
