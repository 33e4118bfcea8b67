"""launch/doctor/libraries.py: a library that crashes, hangs or is not there is a row."""

import subprocess
import sys
import time

import pytest

from dist_train.config import RunConfig
from launch.doctor import libraries
from launch.doctor.finding import Finding
from model.config import BackboneConfig
from tests.helpers.doctors import report, visit


def finish(code: str, patience_s: float = 30) -> dict[str, object]:
    command = [sys.executable, "-c", code]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as probe:
        try:
            return libraries.finish(probe, time.monotonic() + patience_s)
        finally:
            probe.kill()


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import os; os.kill(os.getpid(), 11)", "it crashed (SIGSEGV)"),
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("assert False, 'wrong product'", "AssertionError: wrong product"),
        ("raise SystemExit(3)", "exit code 3"),
        ("print('no json')", "exit code 0"),
    ],
)
def test_what_does_not_load_says_why(code: str, said: str):
    assert finish(code) == {"error": f"does not load: {said}"}


def test_a_probe_that_hangs_is_not_waited_for():
    found = finish("import time; time.sleep(60)", 0.5)
    assert found == {"error": "has not loaded in time"}
    row = judged(faiss=str(found["error"]))["faiss"]
    assert row.status == "warn"
    assert "--timeout_s" in row.remedy


def test_the_last_line_is_what_a_probe_found():
    assert finish("print('a warning'); print('{\"version\": \"1\"}')") == {"version": "1"}


@pytest.mark.parametrize("name", ["torch", "faiss"])
def test_what_is_installed_here_loads_and_computes(name: str):
    found = finish(libraries.PROBES[name], 120)
    assert "error" not in found
    assert found["gpus"] is not None


def judged(config: RunConfig | None = None, **errors: str) -> dict[str, Finding]:
    probes = {
        name: {"error": errors[name]} if name in errors else {"version": "1", "cuda": "", "gpus": 0}
        for name in libraries.PROBES
    }
    builds = {"driver": None, "faiss": {"faiss-cpu": "1.15"}, "faiss_cuda": None}
    reports = [report(0, "a", probes=probes, builds=builds)]
    return {row.check: row for row in libraries.judge(reports, visit(config))}


def test_libraries_that_load_are_a_row_each():
    rows = judged()
    assert set(rows) == {*libraries.PROBES, "builds"}
    assert {row.status for row in rows.values()} == {"ok"}


def test_a_library_that_does_not_load_fails_and_bitsandbytes_only_where_it_is_needed():
    rows = judged(faiss="does not load: x", bitsandbytes="does not load: y")
    assert (rows["faiss"].status, rows["faiss"].found) == ("fail", "does not load: x")
    assert rows["bitsandbytes"].status == "warn"
    needed = RunConfig(backbone=BackboneConfig(load_in_4bit=True))
    assert judged(needed, bitsandbytes="y")["bitsandbytes"].status == "fail"
