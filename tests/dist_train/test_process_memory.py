"""dist_train/process_memory.py: what the kernel says, and what limits it."""

import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dist_train.process_memory import (
    MemoryUse,
    address_space_left,
    cgroup_limit,
    host_limit,
    measure,
)

MIB = 2**20


def status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":"))


def test_a_measurement_is_what_the_kernel_says():
    use = measure()
    # The kernel updates its counters now and then.
    assert use.resident == pytest.approx(status("RssAnon"), abs=4 * MIB)
    assert use.virtual == pytest.approx(status("VmSize"), abs=4 * MIB)
    assert use.gpu == 0


def test_growth_is_what_was_allocated_and_touched():
    before = measure()
    block = np.empty(64 * MIB, dtype=np.uint8)
    mapped = measure().since(before)
    block[:] = 1
    touched = measure().since(before)
    assert mapped.virtual == pytest.approx(64 * MIB, abs=2 * MIB)
    assert mapped.resident < 8 * MIB
    assert touched.resident == pytest.approx(64 * MIB, abs=8 * MIB)
    del block
    assert measure().since(before).virtual < 8 * MIB


def test_the_larger_of_two_number_by_number():
    one, two = MemoryUse(resident=1, virtual=5, gpu=2), MemoryUse(resident=3, virtual=4, gpu=2)
    assert one.largest(two) == MemoryUse(resident=3, virtual=5, gpu=2)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_version_2_groups_limit_those_below_them(tmp_path: Path):
    write(tmp_path / "proc", "0::/job/step\n")
    mount = tmp_path / "mount"
    write(mount / "job/step/memory.max", "max\n")
    assert cgroup_limit(tmp_path / "proc", mount) is None
    write(mount / "job/memory.max", "8589934592\n")
    assert cgroup_limit(tmp_path / "proc", mount) == 8 * 2**30
    write(mount / "job/step/memory.max", "4294967296\n")
    assert cgroup_limit(tmp_path / "proc", mount) == 4 * 2**30


def test_version_1_groups_and_their_number_for_no_limit(tmp_path: Path):
    write(tmp_path / "proc", "9:name=systemd:/\n4:memory:/job\n0::/\n")
    mount = tmp_path / "mount"
    write(mount / "memory/job/memory.limit_in_bytes", "9223372036854771712\n")
    assert cgroup_limit(tmp_path / "proc", mount) is None
    write(mount / "memory/memory.limit_in_bytes", "2147483648\n")
    assert cgroup_limit(tmp_path / "proc", mount) == 2 * 2**30


def test_a_group_that_is_mounted_elsewhere(tmp_path: Path):
    # In a container the path is the host's, and the mount is the group itself.
    write(tmp_path / "proc", "4:memory:/docker/abc\n")
    write(tmp_path / "mount/memory/memory.limit_in_bytes", "1073741824\n")
    assert cgroup_limit(tmp_path / "proc", tmp_path / "mount") == 2**30
    assert cgroup_limit(tmp_path / "missing", tmp_path / "mount") is None


def test_a_limited_address_space_comes_first():
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY
    most, kind = host_limit()
    assert kind in ("machine", "cgroup")
    assert most > 2**28
    assert address_space_left() is None
    script = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 32, 1 << 32))\n"
        "from dist_train.process_memory import address_space_left, host_limit\n"
        "print(*host_limit(), address_space_left())"
    )
    told = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    limit, *words, left = told.stdout.split()
    assert (int(limit), words) == (2**32, ["address", "space"])
    assert 2**31 < int(left) < 2**32
