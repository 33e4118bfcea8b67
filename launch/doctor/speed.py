"""How fast each rank multiplies matrices, all at the same time: the slowest sets the pace."""

import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch

from dist_train import distributed
from launch.doctor.check import Visit
from launch.doctor.finding import Finding
from launch.doctor.report import Report

CHECK = "speed"
SLOW = 1.5
"""Times the time of the median rank."""

_WIDTH = {"cpu": 1024, "cuda": 8192}
_SECONDS = 0.5
_LEAST, _MOST = 3, 200  # products


def examine(visit: Visit) -> dict[str, Any]:
    """Time a product of two square matrices: float32 on a CPU, bfloat16 on a GPU."""
    device = distributed.device()
    width = _WIDTH[device.type]
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    matrix = torch.full((width, width), 1 / width, device=device, dtype=dtype)
    product = matrix @ matrix  # loads what it needs
    _wait(device)
    visit.meeting.await_all("speed", len(visit.ranks))
    times: list[float] = []
    while len(times) < _LEAST or (sum(times) < _SECONDS and len(times) < _MOST):
        began = time.perf_counter()
        torch.matmul(matrix, matrix, out=product)
        _wait(device)
        times.append(time.perf_counter() - began)
    return {"seconds": statistics.median(times), "width": width, "device": device.type}


def judge(reports: Sequence[Report], visit: Visit) -> list[Finding]:
    """Name the slowest rank; warn where it is much slower than the others."""
    slowest = max(reports, key=lambda report: float(report.facts["seconds"]))
    others = [float(r.facts["seconds"]) for r in reports if r is not slowest]
    seconds, width = float(slowest.facts["seconds"]), int(slowest.facts["width"])
    tflops = 2 * width**3 / seconds / 1e12
    numbers = {f"rank_{r.rank}_ms": round(1000 * float(r.facts["seconds"]), 3) for r in reports}
    product = f"a {width} x {width} product in {1000 * seconds:.1f} ms, {tflops:.3g} TFLOP/s"
    if not others:
        return [Finding(check=CHECK, status="ok", found=f"one rank: {product}", numbers=numbers)]
    typical = statistics.median(others)
    found = (
        f"slowest is {slowest.who}: {product}; the median of the others takes "
        f"{1000 * typical:.1f} ms"
    )
    if seconds > SLOW * typical:
        remedy = (
            "Look there for other jobs (top, nvidia-smi), heat and power limits (nvidia-smi -q -d "
            "PERFORMANCE), and threads per rank (OMP_NUM_THREADS); or leave the node out."
        )
        return [Finding(check=CHECK, status="warn", found=found, remedy=remedy, numbers=numbers)]
    return [Finding(check=CHECK, status="ok", found=found, numbers=numbers)]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
