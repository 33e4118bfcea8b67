"""launch/doctor/finding.py: the worst row counts; a refusal is split before its remedy."""

import pytest

from launch.doctor.finding import Finding, refusal, worst


def finding(status: str) -> Finding:
    return Finding(check="c", status=status, found="f", remedy="r")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        (["ok", "warn", "fail", "skip"], "fail"),
        (["skip", "warn", "ok"], "warn"),
        (["ok", "skip"], "ok"),
        (["skip"], "ok"),
        ([], "ok"),
    ],
)
def test_the_worst_row_counts(statuses: list[str], expected: str):
    assert worst([finding(status) for status in statuses]) == expected


@pytest.mark.parametrize(
    ("message", "found", "remedy"),
    [
        ("a.csv: missing; gone. Set data.root.", "a.csv: missing; gone", "Set data.root."),
        ("key=7: does not divide: choose 8.", "key=7: does not divide", "Choose 8."),
        ("a: No space left; free some.", "a: No space left", "Free some."),
        ("no mark", "no mark", "See the message."),
    ],
)
def test_a_message_is_split_before_its_remedy(message: str, found: str, remedy: str):
    row = refusal("data", message)
    assert (row.status, row.found, row.remedy) == ("fail", found, remedy)


def test_what_is_wrong_has_a_remedy():
    with pytest.raises(AssertionError):
        Finding(check="c", status="warn", found="f")
