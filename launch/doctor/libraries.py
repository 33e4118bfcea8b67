"""Whether the libraries load and compute, each in a process of its own that it may crash."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launch.doctor import builds
from launch.doctor.check import Visit
from launch.doctor.finding import Finding
from launch.doctor.report import Report, group_by, name_all

PROBES = {
    "torch": """
import json, torch
found = {"version": torch.__version__, "cuda": torch.version.cuda or ""}
found["gpus"] = torch.cuda.device_count() if torch.cuda.is_available() else 0
matrix = torch.ones(64, 64, device="cuda" if found["gpus"] else "cpu")
assert float((matrix @ matrix).sum()) == 64**3, "wrong product"
print(json.dumps(found))
""",
    "faiss": """
import json, numpy, faiss
found = {"version": faiss.__version__, "gpus": getattr(faiss, "get_num_gpus", int)()}
index = faiss.IndexFlatL2(4)
if found["gpus"]:
    index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index)
vectors = numpy.eye(4, dtype=numpy.float32)
index.add(vectors)
assert index.search(vectors, 1)[1][:, 0].tolist() == [0, 1, 2, 3], "wrong neighbours"
print(json.dumps(found))
""",
    "bitsandbytes": """
import json, torch, bitsandbytes
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
weights = torch.linspace(-1, 1, 4096, device="cuda" if torch.cuda.is_available() else "cpu")
back = dequantize_4bit(*quantize_4bit(weights.reshape(64, 64), quant_type="nf4"))
assert float((back.reshape(-1) - weights).abs().max()) < 0.2, "wrong weights"
print(json.dumps({"version": bitsandbytes.__version__}))
""",
    "deepspeed": """
import json, deepspeed, transformers
found = {"version": deepspeed.__version__, "transformers": transformers.__version__}
print(json.dumps(found))
""",
}
"""By name, what is loaded and computed; the last line printed is JSON."""

REMEDIES = {
    "torch": "Install torch again in a fresh environment, from requirements.lock.",
    "faiss": "Install faiss-cpu or faiss-gpu again, not both: pip uninstall faiss-cpu faiss-gpu, "
    "then pip install -e '.[cpu]' or '.[gpu]'.",
    "bitsandbytes": "Only backbone.load_in_4bit needs it: install it again, or set "
    "backbone.load_in_4bit=false.",
    "deepspeed": "Install deepspeed and transformers again from requirements.lock; for CUDA "
    "operators set CUDA_HOME.",
}

_TOO_SLOW = "has not loaded in time"
_TOO_SLOW_REMEDY = "Raise --timeout_s on a busy machine; if it never loads, install it again."


def examine(visit: Visit) -> dict[str, Any]:
    """Start all probes at once and wait for them."""
    deadline = time.monotonic() + 0.9 * visit.options.timeout_s
    started = {name: _start(code) for name, code in PROBES.items()}
    try:
        probes = {name: finish(one, deadline) for name, one in started.items()}
    finally:
        for one in started.values():
            one.kill()
    return {"probes": probes, "builds": builds.examine()}


def judge(reports: Sequence[Report], visit: Visit) -> list[Finding]:
    """Fail where a library does not load or compute; then judge the builds."""
    findings = []
    for name in PROBES:
        groups = group_by(reports, lambda report, name=name: json.dumps(_probe(report, name)))  # type: ignore[misc]
        for text, ranks in groups.items():
            found = json.loads(text)
            where = f" on {name_all(ranks)}" if len(groups) > 1 else ""
            if "error" in found:
                said, status, remedy = found["error"], "fail", REMEDIES[name]
                if said == _TOO_SLOW:  # which a busy machine is no less than a broken library
                    status, remedy = "warn", _TOO_SLOW_REMEDY
                if name == "bitsandbytes" and not visit.config.backbone.load_in_4bit:
                    status = "warn"
            else:
                said, status, remedy = _describe(found), "ok", ""
            findings.append(
                Finding(check=name, status=status, found=said + where, remedy=remedy)  # type: ignore[arg-type]
            )
    nodes = [(report, report.facts["builds"], _probe(report, "torch")) for report in reports]
    return findings + builds.judge(nodes)


def finish(probe: "subprocess.Popen[str]", deadline: float) -> dict[str, Any]:
    """Wait for a probe.

    Returns:
        What it found; or ``error``, in one line.
    """
    patience = max(0.1, deadline - time.monotonic())
    try:
        out, error = probe.communicate(timeout=patience)
    except subprocess.TimeoutExpired:
        return {"error": _TOO_SLOW}
    if probe.returncode < 0:
        return {"error": f"does not load: it crashed ({signal.Signals(-probe.returncode).name})"}
    try:
        found: dict[str, Any] = json.loads(out.splitlines()[-1])
    except (ValueError, IndexError):
        last = (error.strip().splitlines() or [f"exit code {probe.returncode}"])[-1]
        return {"error": f"does not load: {last[:300]}"}
    return found


def _start(code: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],  # not where a user's file may be called like a library
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def _probe(report: Report, name: str) -> dict[str, Any]:
    found: dict[str, Any] = report.facts["probes"][name]
    return found


def _describe(found: dict[str, Any]) -> str:
    if "transformers" in found:
        return f"{found['version']} loads, and transformers {found['transformers']}"
    cuda = f", CUDA {found['cuda']}" if found.get("cuda") else ""
    gpus = f", {found['gpus']} GPUs" if found.get("gpus") else ""
    return f"{found['version']} loads and computes{cuda}{gpus}"
