"""How far the clocks of the ranks are from that of rank 0, the time of the question taken out."""

import time
from collections.abc import Sequence
from typing import Any

from launch.doctor.check import Visit
from launch.doctor.finding import Finding
from launch.doctor.report import Report

CHECK = "clocks"
LARGEST_SKEW_S = 1.0
"""Time stamps of logs and files tell the order of what happened down to a second."""

_QUESTIONS = 8


def examine(visit: Visit) -> dict[str, Any]:
    """Ask rank 0 what time it is, several times; the quickest answer is the surest."""
    meeting = visit.meeting
    if meeting.leads:
        for other in visit.ranks:
            for number in range(_QUESTIONS if other.seat != meeting.arrival.seat else 0):
                meeting.answer(f"clock/{other.seat}/{number}", lambda: repr(time.time()))
        return {"skew_s": 0.0, "round_trip_s": 0.0}
    answers = []
    for number in range(_QUESTIONS):
        before, began = time.time(), time.monotonic()
        told = float(meeting.ask(f"clock/{meeting.arrival.seat}/{number}"))
        round_trip = time.monotonic() - began
        answers.append((round_trip, before + round_trip / 2 - told))
    round_trip, skew = min(answers)
    return {"skew_s": skew, "round_trip_s": round_trip}


def judge(reports: Sequence[Report], visit: Visit) -> list[Finding]:
    """Warn where a clock is off by more than can be the way's fault."""
    farthest = max(reports, key=lambda report: abs(float(report.facts["skew_s"])))
    skew, sure = float(farthest.facts["skew_s"]), float(farthest.facts["round_trip_s"]) / 2
    if len(reports) == 1:
        return [Finding(check=CHECK, status="skip", found="one rank")]
    numbers = {"largest_skew_s": round(skew, 6), "uncertainty_s": round(sure, 6)}
    found = (
        f"at most {1000 * abs(skew):.2f} ms from rank 0's, {farthest.who} "
        f"(sure to {1000 * sure:.2f} ms)"
    )
    if abs(skew) - sure > LARGEST_SKEW_S:
        direction = "ahead of" if skew > 0 else "behind"
        return [
            Finding(
                check=CHECK,
                status="warn",
                found=f"the clock of {farthest.who} is {abs(skew):.1f} s {direction} rank 0's "
                f"(sure to {1000 * sure:.2f} ms)",
                remedy="Start a time service there (chrony or ntpd): time stamps of logs and "
                "files will not compare.",
                numbers=numbers,
            )
        ]
    return [Finding(check=CHECK, status="ok", found=found, numbers=numbers)]
