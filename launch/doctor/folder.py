"""Whether all nodes see the run's folder as one: many ranks write checkpoints and banks there."""

import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dist_train.run_folder import nearest_folder
from launch.doctor.check import Visit
from launch.doctor.finding import Finding
from launch.doctor.report import Report, name_all

CHECK = "folder"
_PATIENCE_S = 5.0  # a network disk may show a new file late
_TICK_S = 0.2


def examine(visit: Visit) -> dict[str, Any]:
    """Rank 0 makes an empty file; the others look for it in what is the folder to them."""
    if visit.meeting.leads:
        return _show(visit)
    folder = nearest_folder(visit.config)
    name = visit.meeting.hear("token")
    seen = folder / name if name else folder
    deadline = time.monotonic() + _PATIENCE_S
    while not seen.exists() and time.monotonic() < deadline:
        time.sleep(_TICK_S)
    return {"folder": str(folder), "seen": seen.exists()}


def judge(reports: Sequence[Report], visit: Visit) -> list[Finding]:
    """Fail where a rank does not see the file of rank 0."""
    blind = [report for report in reports if not report.facts["seen"]]
    place = next((report.facts["folder"] for report in reports if report.rank == 0), "")
    if blind:
        return [
            Finding(
                check=CHECK,
                status="fail",
                found=f"{name_all(blind)} {'do' if len(blind) > 1 else 'does'} not see in "
                f"{blind[0].facts['folder']} what rank 0 has written to {place}",
                remedy="Set --runs_dir to a folder that all nodes share, by the same path.",
            )
        ]
    return [Finding(check=CHECK, status="ok", found=f"all ranks share {place}")]


def _show(visit: Visit) -> dict[str, Any]:
    token: Path | None = None
    try:
        folder = nearest_folder(visit.config)
        token = folder / f".timellm-doctor-{uuid.uuid4().hex}"
        visit.leftovers.append(token)
        token.touch(exist_ok=False)
        return {"folder": str(folder), "seen": True}
    except (OSError, ValueError):
        token = None
        raise
    finally:
        visit.meeting.publish("token", token.name if token else "")
