"""The whole examination of one rank: meet, look alone, look together, and hear the verdict."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from dist_train.config import without_credentials
from launch.doctor import (
    clocks,
    devices,
    disk,
    folder,
    host,
    inputs,
    libraries,
    links,
    packages,
    ranks,
    speed,
    wandb_access,
)
from launch.doctor.bounded import bounded
from launch.doctor.check import Check, Visit
from launch.doctor.finding import Finding, worst
from launch.doctor.meeting import Arrival
from launch.doctor.options import CHECKS
from launch.doctor.report import Report

ALL = {
    "inputs": Check(name="inputs", examine=inputs.examine, judge=inputs.judge),
    "packages": Check(name="packages", examine=packages.examine, judge=packages.judge),
    "libraries": Check(
        name="libraries", examine=libraries.examine, judge=libraries.judge, once_per_node=True
    ),
    "devices": Check(name="devices", examine=devices.examine, judge=devices.judge),
    "host": Check(name="host", examine=host.examine, judge=host.judge, once_per_node=True),
    "disk": Check(name="disk", examine=disk.examine, judge=disk.judge, once_per_node=True),
    "wandb": Check(
        name="wandb", examine=wandb_access.examine, judge=wandb_access.judge, once_per_node=True
    ),
    "clocks": Check(name="clocks", examine=clocks.examine, judge=clocks.judge, together=True),
    "folder": Check(name="folder", examine=folder.examine, judge=folder.judge, together=True),
    "speed": Check(name="speed", examine=speed.examine, judge=speed.judge, together=True),
    "links": Check(name="links", examine=links.examine, judge=links.judge, together=True),
}
assert tuple(ALL) == CHECKS

_REMEDY = "Run it again with a larger --timeout_s, or --skip {name}; see docs/doctor.md."


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """How the examination ended."""

    code: int
    """0: nothing failed; 1: something did."""

    findings: list[Finding] = field(default_factory=list)
    """All rows; on ranks other than the leader there are none."""

    arrivals: Sequence[Arrival] = ()
    """The ranks that came; on the leader."""


def examine(visit: Visit) -> Verdict:
    """Take part as one rank; every rank that came has to.

    Raises:
        LostLeaderError: Rank 0 is gone.
    """
    return _lead(visit) if visit.meeting.leads else _follow(visit)


def _follow(visit: Visit) -> Verdict:
    meeting = visit.meeting
    meeting.post("alone", _look(visit, together=False))
    seats = meeting.hear("together")
    if seats:
        visit = replace(visit, ranks=_seated(meeting.arrivals(), seats))
        meeting.post("together", _look(visit, together=True))
    code = int(meeting.hear("verdict"))
    meeting.leave(0)
    return Verdict(code=code)


def _lead(visit: Visit) -> Verdict:
    meeting, expected = visit.meeting, visit.options.world_size
    meeting.wait_for_ranks()
    meeting.post("alone", _look(visit, together=False))
    arrivals = meeting.arrivals()
    posted, lost = meeting.collect("alone", arrivals)
    arrivals = [*arrivals, *_late(meeting.arrivals(), arrivals)]  # one too many comes late
    findings = ranks.judge(arrivals, expected)
    complete = worst(ranks.judge(arrivals, None)) != "fail"
    findings += _judge_all(visit, arrivals, posted, lost, together=False)
    why = _obstacle(findings, complete, lost)
    meeting.publish("together", "" if why else ",".join(str(one.seat) for one in arrivals))
    if why:
        skipped = [name for name, check in ALL.items() if check.together]
        findings += [Finding(check=name, status="skip", found=why) for name in skipped]
    else:
        visit = replace(visit, ranks=arrivals)
        meeting.post("together", _look(visit, together=True))
        posted, lost = meeting.collect("together", arrivals)
        findings += _judge_all(visit, arrivals, posted, lost, together=True)
    code = int(worst(findings) == "fail")
    meeting.publish("verdict", str(code))
    return Verdict(code=code, findings=findings, arrivals=arrivals)


def _look(visit: Visit, *, together: bool) -> dict[str, Any]:
    """Make the checks of this rank, one after the other, each for so long at most.

    Returns:
        By check, the facts, or ``error`` in one line.
    """
    found: dict[str, Any] = {}
    first = visit.meeting.arrival.number_on_node == 0
    for name, check in ALL.items():
        if name in visit.options.skip or check.together != together:
            continue
        if check.once_per_node and not first:
            continue
        visit.meeting.set_progress(name)
        found[name] = _one(check.examine, visit)
    return found


def _one(examine: Callable[[Visit], dict[str, Any]], visit: Visit) -> dict[str, Any]:
    try:
        return {"facts": bounded(lambda: examine(visit), visit.options.timeout_s)}
    except Exception as error:  # whatever it is, it is a row, and the other checks are made
        lines = without_credentials(str(error)).strip().splitlines() or [""]
        kind = "" if isinstance(error, TimeoutError) else f"{type(error).__name__}: "
        return {"error": f"{kind}{lines[0][:300]}"}


def _judge_all(
    visit: Visit,
    arrivals: Sequence[Arrival],
    posted: dict[int, dict[str, Any]],
    lost: dict[int, str],
    *,
    together: bool,
) -> list[Finding]:
    """Judge what the ranks have posted, check by check."""
    findings = [
        Finding(
            check="ranks",
            status="fail",
            found=f"rank {one.rank} ({one.node}) is gone, or hangs: its last sign of life was "
            f"from {lost[one.seat]}",
            remedy="Look at its output there; a process that was killed says nothing: dmesg "
            "tells of memory used up.",
        )
        for one in arrivals
        if one.seat in lost
    ]
    for name, check in ALL.items():
        if check.together != together:
            continue
        if name in visit.options.skip:
            findings.append(Finding(check=name, status="skip", found=f"--skip {name}"))
            continue
        reports = [
            Report(rank=one.rank, node=one.node, **posted[one.seat][name])
            if "facts" in posted[one.seat][name]
            else Report(rank=one.rank, node=one.node, facts={}, **posted[one.seat][name])
            for one in sorted(arrivals, key=lambda one: one.rank)
            if name in posted.get(one.seat, {})
        ]
        findings += _judge(check, reports, visit)
    return findings


def _judge(check: Check, reports: Sequence[Report], visit: Visit) -> list[Finding]:
    broken = [report for report in reports if report.error]
    findings = []
    if broken:
        said = "; ".join(f"{report.who} {report.error}" for report in broken[:4])
        more = f"; and {len(broken) - 4} more" if len(broken) > 4 else ""
        remedy = links.REMEDY if check.name == "links" else _REMEDY.format(name=check.name)
        findings = [Finding(check=check.name, status="fail", found=said + more, remedy=remedy)]
    well = [report for report in reports if not report.error]
    return findings + (check.judge(well, visit) if well and not (broken and check.together) else [])


def _obstacle(findings: Sequence[Finding], complete: bool, lost: dict[int, str]) -> str:
    """Why nothing can be done together; empty where it can."""
    if not complete:
        return "needs all ranks, each once: see ranks"
    if lost:
        return "needs all ranks, and one is gone: see ranks"
    if any(one.check == devices.CHECK and one.status == "fail" for one in findings):
        return "needs a device for every rank: see devices"
    return ""


def _late(now: Sequence[Arrival], before: Sequence[Arrival]) -> list[Arrival]:
    known = {arrival.seat for arrival in before}
    return [arrival for arrival in now if arrival.seat not in known]


def _seated(arrivals: Sequence[Arrival], seats: str) -> list[Arrival]:
    wanted = set(map(int, seats.split(",")))
    return [arrival for arrival in arrivals if arrival.seat in wanted]
