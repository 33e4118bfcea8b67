"""launch/doctor/checkup.py: a check that breaks is a row, and the others are made."""

import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from dist_train.config import RunConfig
from launch.doctor import checkup
from launch.doctor.address import Place
from launch.doctor.check import Check, Visit
from launch.doctor.finding import Finding
from launch.doctor.meeting import Meeting
from launch.doctor.options import DoctorOptions
from launch.doctor.report import Report
from tests.helpers.jobs import free_port


def a_check(name: str, examine: Any, **changes: Any) -> Check:
    def judge(reports: Sequence[Report], visit: Visit) -> list[Finding]:
        found = ",".join(f"{report.rank}:{report.facts['said']}" for report in reports)
        return [Finding(check=name, status="ok", found=found)]

    return Check(name=name, examine=examine, judge=judge, **changes)


def say(visit: Visit) -> dict[str, Any]:
    return {"said": "well"}


def visits(count: int, local_ranks: Sequence[int] = (0, 1), **options: Any) -> list[Visit]:
    port = free_port()
    meetings = [
        Meeting(
            Place(rank=rank, world_size=count, local_rank=local_ranks[rank], address="127.0.0.1",
                  port=port),
            "a", 20,
        )
        for rank in range(count)
    ]  # fmt: skip
    given = DoctorOptions(timeout_s=20, **options)
    return [Visit(config=RunConfig(), options=given, meeting=one) for one in meetings]


def examine(
    checks: list[Check], patch: pytest.MonkeyPatch, count: int = 1, **options: Any
) -> tuple[list[Finding], list[int]]:
    """Let ranks that are threads of this process examine themselves; rows and exit codes."""
    patch.setattr(checkup, "ALL", {check.name: check for check in checks})
    leader, *others = visits(count, **options)
    codes: list[int] = []
    threads = [
        threading.Thread(target=lambda one=one: codes.append(checkup.examine(one).code))
        for one in others
    ]
    for thread in threads:
        thread.start()
    verdict = checkup.examine(leader)
    for thread in threads:
        thread.join()
    return verdict.findings, [verdict.code, *codes]


def test_the_checks_are_made_in_order_and_those_together_last(monkeypatch: pytest.MonkeyPatch):
    checks = [
        a_check("links", say, together=True),
        a_check("disk", say, once_per_node=True),
        a_check("data", say),
    ]
    findings, codes = examine(checks, monkeypatch, 2)
    assert [(row.check, row.found) for row in findings] == [
        ("ranks", "2 of 2, on 1 node"),
        ("disk", "0:well"),
        ("data", "0:well,1:well"),
        ("links", "0:well,1:well"),
    ]
    assert codes == [0, 0]


def test_a_check_that_breaks_on_one_rank_is_a_failure_and_the_others_are_made(
    monkeypatch: pytest.MonkeyPatch,
):
    def break_on_rank_1(visit: Visit) -> dict[str, Any]:
        if visit.rank == 1:
            raise OSError(5, "Input/output error", "/x")
        return say(visit)

    checks = [a_check("disk", break_on_rank_1), a_check("data", say)]
    findings, codes = examine(checks, monkeypatch, 2)
    assert codes == [1, 1]
    broken, rest, other = findings[1:]
    assert (broken.check, broken.status) == ("disk", "fail")
    assert broken.found == "rank 1 (a) OSError: [Errno 5] Input/output error: '/x'"
    assert "--skip disk" in broken.remedy
    assert (rest.found, other.found) == ("0:well", "0:well,1:well")


def test_a_password_in_an_error_is_not_repeated(monkeypatch: pytest.MonkeyPatch):
    def leak(visit: Visit) -> dict[str, Any]:
        raise OSError("http://user:secret@host/ is not there")

    findings, _ = examine([a_check("data", leak)], monkeypatch)
    assert "secret" not in findings[1].found


def test_what_is_left_out_is_said(monkeypatch: pytest.MonkeyPatch):
    def never(visit: Visit) -> dict[str, Any]:
        raise AssertionError("it was left out")

    findings, codes = examine([a_check("disk", never)], monkeypatch, skip=("disk",))
    assert (findings[1].status, findings[1].found) == ("skip", "--skip disk")
    assert codes == [0]


def test_nothing_is_done_together_where_a_rank_has_no_device(monkeypatch: pytest.MonkeyPatch):
    def judge(reports: Sequence[Report], visit: Visit) -> list[Finding]:
        return [Finding(check="devices", status="fail", found="x", remedy="y")]

    def never(visit: Visit) -> dict[str, Any]:
        raise AssertionError("it was not to be done")

    checks = [
        replace(a_check("devices", say), judge=judge),
        a_check("links", never, together=True),
    ]
    findings, _ = examine(checks, monkeypatch)
    assert (findings[2].status, findings[2].found) == (
        "skip", "needs a device for every rank: see devices",
    )  # fmt: skip
