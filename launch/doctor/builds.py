"""Whether the builds of torch and FAISS fit the machine's GPU driver, and each other."""

import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from launch.doctor.finding import Finding, Status
from launch.doctor.packages import FAISS_BUILDS, version_of
from launch.doctor.report import Report, name_all

CHECK = "builds"
_DRIVER = Path("/proc/driver/nvidia/version")
_QUERY_S = 20.0


def examine() -> dict[str, Any]:
    """Read the driver's version and the installed builds of FAISS."""
    installed = {name: version_of(name) for name in FAISS_BUILDS}
    return {
        "driver": driver_version(),
        "faiss": {name: version for name, version in installed.items() if version},
        "faiss_cuda": cuda_of("faiss-gpu") if installed["faiss-gpu"] else None,
    }


def judge(nodes: Sequence[tuple[Report, dict[str, Any], dict[str, Any]]]) -> list[Finding]:
    """Judge each node; what is so on several is one row.

    Args:
        nodes: A report of each, what :func:`examine` returned there, and what the probe of torch
            found: ``cuda`` (empty: a CPU build) and ``gpus``, or ``error``.
    """
    found: dict[tuple[Status, str, str], list[Report]] = {}
    for report, facts, torch in nodes:
        own = [*_of_torch(facts["driver"], torch), *_of_faiss(facts, torch)]
        good = Finding(check=CHECK, status="ok", found=_describe(facts, torch))
        for one in own or [good]:
            found.setdefault((one.status, one.found, one.remedy), []).append(report)
    return [
        Finding(
            check=CHECK,
            status=status,
            found=text if len(reports) == len(nodes) else f"{text}, on {name_all(reports)}",
            remedy=remedy,
        )
        for (status, text, remedy), reports in found.items()
    ]


def driver_version() -> str | None:
    """Version of the NVIDIA driver; None: there is none, ``unknown``: it does not say."""
    found = re.search(r"Module +(?:for \S+ +)?([\d.]+)", _read(_DRIVER))
    if found:
        return found[1]
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    query = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=_QUERY_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return (answer.stdout.split() or ["unknown"])[0]


def cuda_of(distribution: str) -> str | None:
    """The major version of CUDA that a package's own requirements name (``...-cu12``)."""
    for requirement in metadata.requires(distribution) or []:
        named = re.match(r"nvidia-[a-z-]+-cu(\d+)", requirement)
        if named:
            return named[1]
    return None


def _of_torch(driver: str | None, torch: dict[str, Any]) -> Iterator[Finding]:
    if "error" in torch:
        return
    if driver and not torch["cuda"]:
        yield _finding(
            "fail",
            f"torch {torch['version']} is a build without CUDA, and there is a GPU driver "
            f"({driver}): everything would be computed on the CPU",
            "Install torch's CUDA build: pip uninstall torch, then pip install torch from the "
            "index for this CUDA version.",
        )
    elif driver and not torch["gpus"]:
        yield _finding(
            "fail",
            f"torch {torch['version']} (CUDA {torch['cuda']}) sees no GPU, and there is a driver "
            f"({driver})",
            "Update the driver, or install a torch of an older CUDA; look at "
            "CUDA_VISIBLE_DEVICES, at the job's request for GPUs, and at nvidia-smi.",
        )
    elif torch["cuda"] and not driver:
        yield _finding(
            "warn",
            f"torch {torch['version']} is built for CUDA {torch['cuda']}, and there is no GPU "
            "driver: everything will be computed on the CPU",
            "Right for a machine without GPUs; else install the driver, or pass the GPUs into "
            "the container (--gpus all).",
        )


def _of_faiss(facts: dict[str, Any], torch: dict[str, Any]) -> Iterator[Finding]:
    driver, installed = facts["driver"], facts["faiss"]
    if len(installed) > 1:
        yield _finding(
            "fail",
            "faiss-cpu and faiss-gpu are both installed: they overwrite each other's module faiss",
            "pip uninstall faiss-cpu faiss-gpu, then install the one for this machine.",
        )
    elif not installed:
        yield _finding(
            "fail",
            "neither faiss-cpu nor faiss-gpu is installed",
            "pip install -e '.[cpu]', or '.[gpu]' on a machine with GPUs.",
        )
    elif "faiss-cpu" in installed and driver:
        yield _finding(
            "warn",
            f"faiss-cpu, and there is a GPU driver ({driver}): the memory is searched on the CPU",
            "pip uninstall faiss-cpu, then pip install -e '.[gpu]'.",
        )
    elif "faiss-gpu" in installed and not driver:
        yield _finding(
            "warn",
            "faiss-gpu, and there is no GPU driver: the memory is searched on the CPU",
            "pip uninstall faiss-gpu, then pip install -e '.[cpu]'.",
        )
    cuda, other = str(torch.get("cuda") or "").partition(".")[0], facts["faiss_cuda"]
    if "faiss-gpu" in installed and cuda and other and cuda != other:
        yield _finding(
            "warn",
            f"faiss-gpu is built for CUDA {other}, torch for CUDA {cuda}: two CUDA runtimes in "
            "one process",
            f"It works where the row of faiss is ok; else install a torch for CUDA {other}.",
        )


def _finding(status: Status, found: str, remedy: str) -> Finding:
    return Finding(check=CHECK, status=status, found=found, remedy=remedy)


def _describe(facts: dict[str, Any], torch: dict[str, Any]) -> str:
    driver = f"driver {facts['driver']}" if facts["driver"] else "no GPU driver"
    cuda = torch.get("cuda")
    build = f"torch for CUDA {cuda}" if cuda else "torch for CPUs"
    return ", ".join([driver, build, *(f"{n} {v}" for n, v in facts["faiss"].items())])


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
