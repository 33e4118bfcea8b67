"""launch/doctor/deadman.py: a process that no longer gets on ends itself."""

import subprocess
import sys
import time

from tests.helpers.jobs import ROOT

HANG = """
import sys, threading, time
from launch.doctor.deadman import Deadman
deadman = Deadman(2.5, lambda what: print("hung in", what, flush=True))
for number in range(4):  # longer than that in all
    time.sleep(0.8)
    deadman.touch(f"part {number}")
if sys.argv[1] == "release":
    deadman.release()
    time.sleep(4)
else:
    threading.Event().wait()
"""


def run(*, release: bool) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", HANG, "release" if release else "hang"]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )


def test_a_process_that_hangs_ends_with_its_last_words():
    began = time.monotonic()
    done = run(release=False)
    assert (done.returncode, done.stdout) == (1, "hung in part 3\n")
    assert time.monotonic() - began > 5


def test_a_process_that_gets_on_or_is_released_lives():
    done = run(release=True)
    assert (done.returncode, done.stdout) == (0, "")
