"""Part ``large`` of the retrieval benchmark: ten million entries on this machine.

The scaling benchmark measures smaller banks with it too. Windows of the real series and of noisy
copies of it, side by side as variates of one wide, memory-mapped array; anchored keys. Built by two
ranks in one set of processes, loaded by two ranks in another, so that each shows its own peak of
memory.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.rank_processes import peak_memory_gib, run_on_ranks
from benchmarks.retrieval_search import PRED_LEN, SEQ_LEN, TOP_K
from dist_train.data.config import DataConfig
from dist_train.data.windows import load_forecast_data
from memory_index.bank import MemoryBank
from memory_index.builder import BankPlan, build_bank
from memory_index.config import BankConfig
from memory_index.exclusion import Exclusion
from memory_index.groups import RankGroup
from memory_index.index_choice import choose_index
from memory_index.loading import load_index
from memory_index.manifest import version_of
from memory_index.recall import SampleQueries, sample_ids
from memory_index.store import BankFolder
from model.pattern_encoder import AnchoredEncoder

ENTRIES, QUICK_ENTRIES = 10_000_000, 200_000
WIDTH = 128
NUM_QUERIES = 224
NOISE = 0.3  # of the standardised series' deviation, which is 1
ENCODE_CHUNK = 1024
# So that 10 M entries of float32 keys do not fit, and 8-bit codes do.
MEMORY_GIB = 1.0


def write_series(folder: Path, dataset: str, root: str | None, entries: int) -> Path:
    """The standardised training rows of a real series and noisy copies of it, as one array."""
    config = DataConfig(dataset=dataset, root=root, seq_len=SEQ_LEN, pred_len=PRED_LEN)
    windows = load_forecast_data(config).windows["train"]
    first, end = windows.ranges[0]
    rows = windows.values[0][first:end]
    starts = len(rows) - SEQ_LEN - PRED_LEN + 1
    variates = -(-entries // starts)
    rng = np.random.default_rng(0)
    path = folder / "series.npy"
    shape = (len(rows), variates)
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
    for variate in range(variates):
        column = rows[:, variate % rows.shape[1]]
        noise = NOISE if variate >= rows.shape[1] else 0.0
        array[:, variate] = column + noise * rng.normal(size=len(rows))
    array.flush()
    return path


def measure(folder: Path, root: str | None, quick: bool) -> dict[str, Any]:
    """Build, then load and search in fresh processes; returns the figures."""
    figures = (
        measure_bank(folder, "vic_elec", root, QUICK_ENTRIES)
        if quick
        else measure_bank(folder, "weather", root, ENTRIES)
    )
    peaks = figures["rss_gib_build"], figures["rss_gib_reload"]
    return {"rss_gib_10m": max(peaks), "large": figures}


def measure_bank(folder: Path, dataset: str, root: str | None, entries: int) -> dict[str, Any]:
    """The same of any number of entries, of a data set and noisy copies of it."""
    path = write_series(folder, dataset, root, entries)
    built = run_on_ranks(build, 2, str(path), str(folder / "banks"))
    loaded = run_on_ranks(reload, 2, str(path), str(folder / "banks"))
    peaks = [sum(rank["peak_gib"] for rank in ranks) for ranks in (built, loaded)]
    return {
        **loaded[0],
        "rss_gib_build": peaks[0],
        "rss_gib_reload": peaks[1],
        "build_s": built[0]["build_s"],
        "entries_per_s_and_core": loaded[0]["entries"] / built[0]["build_s"] / 2,
    }


def build(rank: int, world_size: int, path: str, root: str) -> dict[str, Any]:
    """Build the bank on this rank's share; collective."""
    group, plan, encode, sample = _plan(rank, world_size, path)
    folder = BankFolder(Path(root), version_of(plan.identity))
    began = time.monotonic()
    build_bank(folder, plan, encode, sample, group)
    return {"build_s": time.monotonic() - began, "peak_gib": peak_memory_gib()}


def reload(rank: int, world_size: int, path: str, root: str) -> dict[str, Any]:
    """Load this rank's shard, measure its recall and search; collective."""
    group, plan, encode, sample = _plan(rank, world_size, path)
    folder = BankFolder(Path(root), version_of(plan.identity))
    began = time.monotonic()
    index = load_index(
        folder, plan, encode, sample, group, device=torch.device("cpu"), effort=None,
        min_recall=0.98, refine=4,
    )  # fmt: skip
    loaded_s = time.monotonic() - began
    queries, hidden = sample.keys[:NUM_QUERIES], sample.hidden[:NUM_QUERIES]
    mine = slice(rank, None, world_size)
    times = []
    for _ in range(5):
        group.barrier()
        began = time.perf_counter()
        index.search(queries[mine], hidden[mine], TOP_K)
        group.barrier()
        times.append(time.perf_counter() - began)
    kept = folder.read_recall()
    return {
        "entries": len(plan.entry_ids),
        "index": plan.choice.reason,
        "nlist": plan.choice.nlist,
        "nprobe": index.effort,
        "recall_at_5": 1.0 if kept is None else kept["curve"][index.effort],
        "load_and_tune_s": loaded_s,
        "search_ms": 1000 * float(np.median(times)),
        "disk_bytes_per_entry": folder.size_gib() * 2**30 / len(plan.entry_ids),
        "peak_gib": peak_memory_gib(),
    }


def _plan(rank: int, world_size: int, path: str) -> tuple[RankGroup, BankPlan, Any, SampleQueries]:
    group = RankGroup(dist.new_group(backend="gloo"), range(world_size), rank)
    series = np.load(path, mmap_mode="r")
    config = BankConfig(memory_gib=MEMORY_GIB)
    bank = MemoryBank([series], [(0, len(series))], SEQ_LEN, PRED_LEN, config)
    encoder = AnchoredEncoder(SEQ_LEN, WIDTH)

    @torch.no_grad()
    def encode(ids: Tensor) -> Tensor:
        parts = [encoder(bank.windows(part)).key for part in torch.split(ids, ENCODE_CHUNK)]
        return torch.cat([torch.empty(0, WIDTH), *parts])

    choice = choose_index(
        config, len(bank), WIDTH, on_gpu=False, ranks_per_node=world_size, num_nodes=1
    )
    identity = {"benchmark": "large", "entries": len(bank)}
    plan = BankPlan(
        choice=choice, entry_ids=bank.ids, width=WIDTH, identity=identity, fingerprint="anchored"
    )
    ids = sample_ids(bank.ids)
    rule = Exclusion(seq_len=SEQ_LEN, pred_len=PRED_LEN, past_only=False)
    hidden = bank.hidden(bank.series(ids), bank.starts(ids), rule)
    return group, plan, encode, SampleQueries(keys=encode(ids), hidden=hidden)
