"""launch/doctor/host.py: limits that a job would run into."""

from typing import Any

import pytest

from launch.doctor import host
from tests.helpers.doctors import report, visit

WELL = {
    "memory_gib": 64.0, "memory_of": "machine", "files": 4096, "locked": -1, "infiniband": False,
    "shared_gib": 8.0, "load": 1.0, "cores": 8,
}  # fmt: skip


def test_this_machine_is_described():
    facts = host.examine(visit())
    assert facts["memory_gib"] > 0
    assert facts["cores"] >= 1
    assert host.judge([report(**facts)], visit())


def test_a_node_without_narrow_limits_is_well():
    (finding,) = host.judge([report(0, "a", **WELL), report(1, "b", **WELL)], visit())
    assert finding.status == "ok"
    assert "64.0 GiB of memory (machine), 4096 open files, load 1.0 on 8 cores" in finding.found


@pytest.mark.parametrize(
    ("change", "found", "remedy"),
    [
        ({"files": 256}, "256 open files per process", "ulimit -n"),
        ({"shared_gib": 0.0625}, "64 MiB free in /dev/shm", "--shm-size"),
        ({"memory_gib": 2.0, "memory_of": "cgroup"}, "2.0 GiB of memory (cgroup)", "--mem"),
        ({"infiniband": True, "locked": 8 << 20}, "only 8 MiB of locked memory", "ulimit -l"),
    ],
)
def test_a_narrow_limit_is_a_warning_with_the_node_s_name(
    change: dict[str, Any], found: str, remedy: str
):
    (finding,) = host.judge([report(0, "a", **WELL), report(1, "b", **WELL | change)], visit())
    assert finding.status == "warn"
    assert finding.found.startswith("b: ")
    assert found in finding.found
    assert remedy in finding.remedy


@pytest.mark.parametrize("change", [{"files": -1}, {"shared_gib": None}, {"locked": 0}])
def test_no_limit_is_no_warning(change: dict[str, Any]):
    (finding,) = host.judge([report(**WELL | change)], visit())
    assert finding.status == "ok"
