"""launch/doctor/table.py: one row per check, for people and for programs."""

import json

import pytest

from launch.doctor.finding import Finding
from launch.doctor.table import to_json, to_table

FINDINGS = [
    Finding(check="disk", status="ok", found="fine", numbers={"free_gib": 7.5}),
    Finding(check="data", status="fail", found="gone " * 30, remedy="bring it " * 30),
]


def test_each_row_has_name_status_and_what_was_found_and_its_remedy_below():
    lines = to_table(FINDINGS).splitlines()
    assert lines[0].split() == ["check", "status", "found"]
    assert lines[2].split() == ["disk", "ok", "fine"]
    assert lines[3].split()[:3] == ["data", "fail", "gone"]
    remedy = next(number for number, line in enumerate(lines) if "->" in line)
    assert lines[remedy].index("->") == lines[3].index("gone") == lines[4].index("gone")
    assert lines[remedy + 1].index("bring") == lines[remedy].index("bring")


@pytest.mark.parametrize(("columns", "width"), [("200", 120), ("80", 80), ("20", 60)])
def test_the_table_is_as_wide_as_the_terminal(
    columns: str, width: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", columns)
    lines = to_table(FINDINGS).splitlines()
    assert width - 10 < max(map(len, lines)) <= width


def test_a_long_word_is_not_cut():
    path = "/x" * 100
    assert path in to_table([Finding(check="disk", status="ok", found=path)])


def test_the_json_has_all_rows_and_the_worst_status():
    content = json.loads(json.dumps(to_json(FINDINGS, world_size=2)))
    assert (content["status"], content["world_size"]) == ("fail", 2)
    assert content["checks"][0] == {
        "check": "disk", "status": "ok", "found": "fine", "remedy": "",
        "numbers": {"free_gib": 7.5},
    }  # fmt: skip
    assert len(content["checks"]) == 2
