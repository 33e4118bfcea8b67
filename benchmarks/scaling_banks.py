"""Part ``banks`` of the scaling benchmark: memories of 10^5 to 10^7 entries, and larger on paper.

Measured: built, loaded and searched by two ranks (benchmarks/retrieval_large.py). On paper: what
``timellm plan`` says (launch/bank_plan.py) of banks that do not fit here, and what the measured
rate of encoding makes of them.
"""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.retrieval_large import WIDTH, measure_bank
from benchmarks.retrieval_search import PRED_LEN, SEQ_LEN
from benchmarks.retrieval_step import QUICKSTART
from dist_train.config import RunConfig, load_run_config
from launch.bank_plan import plan_bank
from memory_index.config import BankConfig
from model.config import GramConfig

SIZES, QUICK_SIZES = (10**5, 10**6, 10**7), (10**4, 10**5)
ON_PAPER = {10**8: 8, 10**9: 64}
"""Entries, and GPUs that share them."""
QUERIES = 7 * 32
"""Rows of a micro-batch of one rank."""
GPUS_PER_NODE = 8
MEMORY_GIB = 16.0
"""Of each GPU, for its part of the index."""


def measure(quick: bool) -> dict[int, dict[str, Any]]:
    """Measure the banks of all sizes; by number of entries."""
    found = {}
    for entries in QUICK_SIZES if quick else SIZES:
        with tempfile.TemporaryDirectory(prefix="timellm-bank-") as name:
            found[entries] = measure_bank(Path(name), "vic_elec", None, entries)
        print(f"bank of {entries}: {found[entries]}", flush=True)
    return found


def on_paper(entries_per_s_and_core: float) -> dict[int, dict[str, Any]]:
    """What larger ones would take; by number of entries.

    Args:
        entries_per_s_and_core: Measured rate of encoding and adding.
    """
    found = {}
    for entries, gpus in ON_PAPER.items():
        bank = plan_bank(
            _config(), entries, QUERIES, ranks=gpus, ranks_per_node=GPUS_PER_NODE, on_gpu=True
        )
        found[entries] = {
            "gpus": gpus,
            "index": bank.choice.kind,
            "bytes_per_entry": bank.entry_bytes,
            "shard_gib": bank.rank_bytes / 2**30,
            "host_ids_gib": bank.memory.ids / 2**30,
            "sent_mib_per_step": (bank.query_bytes_sent + bank.answer_bytes_sent) / 2**20,
            "search_cpu_s": bank.search_cpu_s,
            "build_cpu_s": entries / gpus / entries_per_s_and_core,
        }
    return found


def _config() -> RunConfig:
    config = load_run_config(QUICKSTART)
    return replace(
        config,
        data=replace(config.data, seq_len=SEQ_LEN, pred_len=PRED_LEN),
        gram=GramConfig(use_gram=True, retrieval_key="anchored", d_repr=WIDTH),
        bank=BankConfig(memory_gib=MEMORY_GIB),
    )
