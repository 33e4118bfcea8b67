"""Part ``start`` of the scaling benchmark: the first steps of a real training on a corpus.

The command is the user's own. It is watched through its ``metrics.jsonl`` and ended by SIGTERM, so
that nobody waits for the scoring of a million windows.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from benchmarks.scaling_corpus import PRED_LEN, SEQ_LEN
from model.embedded_backbone import EMBEDDED_NAME

BATCH = 64
VAL_STRIDE, VAL_SERIES = 200, 4
"""Windows of model selection: about eighty. All of them are scored before the first step too."""
STOPPED = 75
LIMIT_S = 600
GIVE_BACK = {
    "MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072", "MALLOC_ARENA_MAX": "1",
}  # fmt: skip
"""So that what is freed is given back, and memory is what is in use: left to itself, glibc keeps as
much as it likes, a tenth more or less from run to run of one corpus."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """What was seen of a training."""

    start_s: float
    """From the command to the end of the first step."""

    anonymous_gib: float
    """Memory that cannot be read from a file again, of the rank and its workers."""

    whole_gib: float
    """All of their memory, with the pages of the corpus that are mapped at that time."""

    windows_per_s: float


def write_config(folder: Path, sources: Sequence[Path], steps: int) -> Path:
    """Write the configuration of a training that lasts longer than ``steps``."""
    content = {
        "name": "scaling",
        "runs_dir": str(folder / "runs"),
        "data": {
            "sources": [{"path": str(source)} for source in sources],
            "seq_len": SEQ_LEN, "pred_len": PRED_LEN, "val_stride": VAL_STRIDE,
            "val_series": VAL_SERIES,
        },
        "model": {
            "patch_len": 16, "stride": 16, "d_model": 16, "d_ff": 16, "n_heads": 2,
            "num_prototypes": 32, "prompt": "stats_only", "max_prompt_tokens": 512,
        },
        "backbone": {"name": EMBEDDED_NAME, "llm_layers": 2},
        "tapr": {"use_tapr": False},
        "gram": {"use_gram": False},
        "train": {
            "batch_size": BATCH, "max_steps": 100 * steps, "eval_every": 100 * steps,
            "log_every": 1, "eval_batch_size": 512, "precision": "fp32",
        },
        "checkpoint": {"save_steps": 0},
        "tracking": {"wandb_mode": "disabled", "panel_windows": 0},
    }  # fmt: skip
    file = folder / "scaling.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def measure(folder: Path, sources: Sequence[Path], steps: int) -> Start:
    """Train for some steps, look at the memory, and end it.

    Raises:
        RuntimeError: It ended of itself, or took too long.
    """
    file = write_config(folder, sources, steps)
    metrics = folder / "runs" / "scaling" / "metrics.jsonl"
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "dist_train.cli", "train", "--config", str(file), "--quiet"],
        env=os.environ | GIVE_BACK | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"},
    )
    try:
        _wait_for(process, metrics, 1)
        start_s = time.monotonic() - began
        _wait_for(process, metrics, steps)
        anonymous, whole = _memory_gib(process.pid)
        speeds = [line["perf/windows_per_s"] for line in _steps(metrics)]
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(120)
    if code != STOPPED:
        raise RuntimeError(f"The training ended with {code}, not with {STOPPED}.")
    return Start(
        start_s=start_s,
        anonymous_gib=anonymous,
        whole_gib=whole,
        windows_per_s=float(np.median(speeds[len(speeds) // 4 :])),
    )


def _wait_for(process: "subprocess.Popen[bytes]", metrics: Path, steps: int) -> None:
    deadline = time.monotonic() + LIMIT_S
    while len(_steps(metrics)) < steps:
        if process.poll() is not None:
            raise RuntimeError(f"The training ended with {process.returncode}, see above.")
        if time.monotonic() > deadline:
            raise RuntimeError(f"No {steps} steps within {LIMIT_S} s.")
        time.sleep(0.05)


def _steps(metrics: Path) -> list[dict[str, float]]:
    if not metrics.exists():
        return []
    whole = metrics.read_text().rpartition("\n")[0]
    lines = [json.loads(line) for line in whole.splitlines()]
    return [line for line in lines if "train/loss" in line]


def _memory_gib(pid: int) -> tuple[float, float]:
    """Anonymous and whole memory of a process and those below it, shared pages in equal parts."""
    anonymous = whole = 0
    for process in _with_children(pid):
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss_Anon:"):
                anonymous += int(line.split()[1])
            elif line.startswith("Pss:"):
                whole += int(line.split()[1])
    return anonymous / 2**20, whole / 2**20


def _with_children(pid: int) -> list[int]:
    found = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += _with_children(int(child))
    return found
