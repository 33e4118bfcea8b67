"""launch/doctor/builds.py: builds that do not fit the driver, or each other."""

import os
from pathlib import Path
from typing import Any

import pytest

from launch.doctor import builds
from launch.doctor.finding import Finding
from tests.helpers.doctors import report

CPU = {"version": "2.13.0+cpu", "cuda": "", "gpus": 0}
CUDA = {"version": "2.13.0+cu130", "cuda": "13.0", "gpus": 8}


def judged(torch: dict[str, Any], **facts: Any) -> list[Finding]:
    given = {"driver": None, "faiss": {"faiss-cpu": "1.15"}, "faiss_cuda": None, **facts}
    return builds.judge([(report(), given, torch)])


GPU_FAISS = {"driver": "580.1", "faiss": {"faiss-gpu": "1.15"}, "faiss_cuda": "13"}


@pytest.mark.parametrize(
    ("torch", "facts", "said"),
    [
        (CPU, {}, "no GPU driver, torch for CPUs, faiss-cpu 1.15"),
        (CUDA, GPU_FAISS, "driver 580.1, torch for CUDA 13.0, faiss-gpu 1.15"),
    ],
)
def test_what_fits_is_one_row(torch: dict[str, Any], facts: dict[str, Any], said: str):
    (finding,) = judged(torch, **facts)
    assert (finding.status, finding.found) == ("ok", said)


@pytest.mark.parametrize(
    ("torch", "facts", "status", "said"),
    [
        (CPU, {"driver": "580.1"}, "fail", "is a build without CUDA, and there is a GPU driver"),
        (CUDA | {"gpus": 0}, GPU_FAISS, "fail", "sees no GPU, and there is a driver (580.1)"),
        (CUDA | {"gpus": 0}, {}, "warn", "there is no GPU driver"),
        (CPU, {"faiss": {"faiss-cpu": "1", "faiss-gpu": "1"}}, "fail", "both installed"),
        (CPU, {"faiss": {}}, "fail", "neither faiss-cpu nor faiss-gpu"),
        (CUDA, {"driver": "580.1"}, "warn", "faiss-cpu, and there is a GPU driver"),
        (CPU, {"faiss": {"faiss-gpu": "1"}}, "warn", "faiss-gpu, and there is no GPU driver"),
        (CUDA, GPU_FAISS | {"faiss_cuda": "12"}, "warn", "built for CUDA 12, torch for CUDA 13"),
    ],
)
def test_what_does_not_fit_is_said(
    torch: dict[str, Any], facts: dict[str, Any], status: str, said: str
):
    findings = judged(torch, **facts)
    assert [finding.status for finding in findings if said in finding.found] == [status]


def test_a_torch_that_does_not_load_is_another_row_s_matter():
    (finding,) = judged({"error": "does not load"})
    assert finding.status == "ok"


def test_what_is_so_on_all_nodes_is_one_row_and_else_the_node_is_named():
    none, some = ({"driver": None, "faiss": faiss, "faiss_cuda": None}
                  for faiss in ({}, {"faiss-cpu": "1.15"}))  # fmt: skip
    same = builds.judge([(report(0, "a"), none, CPU), (report(1, "b"), none, CPU)])
    assert [row.found for row in same] == ["neither faiss-cpu nor faiss-gpu is installed"]
    well, ill = builds.judge([(report(0, "a"), some, CPU), (report(1, "b"), none, CPU)])
    assert (well.status, ill.status) == ("ok", "fail")
    assert ill.found.endswith(", on rank 1 (b)")


@pytest.mark.parametrize(
    ("script", "version"), [("echo 580.95.05", "580.95.05"), ("exit 9", "unknown")]
)
def test_the_driver_is_asked(
    script: str, version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(builds, "_DRIVER", tmp_path / "none")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert builds.driver_version() is None
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    assert os.access(tool, os.X_OK)
    assert builds.driver_version() == version


def test_the_driver_s_own_file_tells_its_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "version"
    file.write_text("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release\n")
    monkeypatch.setattr(builds, "_DRIVER", file)
    assert builds.driver_version() == "580.95.05"
    file.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug\n")
    assert builds.driver_version() == "535.104.05"


def test_the_cuda_of_a_package_is_that_of_its_requirements(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    info = tmp_path / "faiss_gpu-1.15.1.dist-info"
    info.mkdir()
    lines = ["Metadata-Version: 2.1", "Name: faiss-gpu", "Version: 1.15.1"]
    lines += ["Requires-Dist: numpy", "Requires-Dist: nvidia-cublas-cu12>=12.1"]
    (info / "METADATA").write_text("\n".join(lines) + "\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert builds.cuda_of("faiss-gpu") == "12"
    assert set(builds.examine()["faiss"]) >= {"faiss-gpu"}
    assert builds.examine()["faiss_cuda"] == "12"
