"""launch/doctor/devices.py: a rank without a GPU of its own, used and unequal ones."""

from typing import Any

from launch.doctor import devices
from tests.helpers.doctors import report, visit


def gpu(local_rank: int, **changes: Any) -> dict[str, Any]:
    facts = {"gpus": 2, "local_rank": local_rank, "cores": 8, "name": "H100", "capability": "9.0"}
    return {**facts, "free_gib": 79.0, "total_gib": 80.0, **changes}


def test_this_machine_is_described():
    facts = devices.examine(visit())
    (finding,) = devices.judge([report(**facts)], visit())
    assert finding.status == "ok"
    assert finding.found.endswith("on rank 0 (a)")


def test_equal_gpus_are_one_row():
    (finding,) = devices.judge([report(0, **gpu(0)), report(1, **gpu(1))], visit())
    assert (finding.status, finding.found) == (
        "ok", "H100, 80 GiB, capability 9.0 on ranks 0, 1 (a)",
    )  # fmt: skip


def test_more_ranks_than_gpus_fail():
    without = {"gpus": 2, "local_rank": 2, "cores": 8}
    found = devices.judge([report(0, **gpu(0)), report(2, "b", **without)], visit())
    assert found[0].status == "fail"
    assert "rank 2 (b): LOCAL_RANK is 2 or more, and 2 GPUs are visible there" in found[0].found


def test_a_gpu_that_others_use_and_one_of_another_kind_are_warnings():
    used, old = gpu(0, free_gib=60.0), gpu(1, name="A100")
    first, second = devices.judge([report(0, **used), report(1, "b", **old)], visit())
    assert (first.status, second.status) == ("warn", "warn")
    assert "rank 0 (a) 60.0 of 80.0 GiB" in first.found
    assert "H100, 80 GiB, capability 9.0 on rank 0 (a); A100" in second.found
