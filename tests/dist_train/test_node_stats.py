"""dist_train/node_stats.py: one reading of each rank makes the metrics of every node."""

import resource
import time
from pathlib import Path

import pytest

from dist_train import node_stats
from dist_train.node_stats import NodeMeter, Reading, summarise

GIB = 2**30


def reading(node: str, **changes: object) -> Reading:
    plain: dict[str, object] = {
        "node": node, "peak_rss": 2 * GIB, "rss": GIB, "cpu_percent": 50.0, "memory_percent": 25.0,
        "gpu_peak": 0, "gpu": 0, "gpu_percent": None,
    }  # fmt: skip
    return Reading(**{**plain, **changes})  # type: ignore[arg-type]


def test_ranks_of_a_node_are_summed_and_nodes_numbered_in_order_of_rank():
    metrics = summarise(
        [reading("b"), reading("b", rss=2 * GIB, cpu_percent=51.0), reading("a", peak_rss=3 * GIB)]
    )
    assert metrics == {
        "perf/rss_gib": 3.0,
        "system/0/rss_gib": 3.0, "system/0/cpu_percent": 50.0, "system/0/memory_percent": 25.0,
        "system/1/rss_gib": 1.0, "system/1/cpu_percent": 50.0, "system/1/memory_percent": 25.0,
    }  # fmt: skip


def test_gpus_of_a_node_are_summed_in_memory_and_averaged_in_use():
    gpu = {"gpu_peak": 4 * GIB, "gpu": GIB}
    metrics = summarise(
        [reading("a", **gpu, gpu_percent=20.0), reading("a", **gpu, gpu_percent=40.0)]
    )
    assert metrics["perf/gpu_gib"] == 4.0
    assert metrics["system/0/gpu_gib"] == 2.0
    assert metrics["system/0/gpu_percent"] == 30.0


def test_what_cannot_be_read_is_left_out():
    nothing = reading("a", cpu_percent=None, memory_percent=None)
    assert summarise([nothing]) == {"perf/rss_gib": 2.0, "system/0/rss_gib": 1.0}


def test_this_process_is_measured():
    meter = NodeMeter()
    until = time.monotonic() + 0.3
    while time.monotonic() < until:
        pass
    metrics = meter.gather()
    assert len(meter.nodes) == 1
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    assert metrics["perf/rss_gib"] == pytest.approx(peak, rel=0.1)
    assert 0 < metrics["system/0/rss_gib"] <= metrics["perf/rss_gib"] + 0.01
    assert 0 < metrics["system/0/cpu_percent"] <= 100
    assert 0 < metrics["system/0/memory_percent"] < 100


def test_without_proc_the_rest_is_still_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(node_stats, "_PROC", tmp_path)
    assert set(NodeMeter().gather()) == {"perf/rss_gib", "system/0/rss_gib"}


def test_a_reading_takes_little_time():
    meter, seconds = NodeMeter(), []
    for _ in range(20):  # the best of them: the machine may be busy
        began = time.perf_counter()
        meter.read()
        seconds.append(time.perf_counter() - began)
    assert min(seconds) < 0.02
