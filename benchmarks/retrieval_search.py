"""Part ``search`` of the retrieval benchmark: the sharded search against brute force and FAISS.

The bank holds every training window of weather and ETTm1 (or, with --quick, a part of the embedded
vic_elec), encoded by the learned encoder with the weights it starts from. 224 queries are training
windows, so the exclusion acts on each of them.

Shape legend (this file):
    M  entries     Q  queries     Z2  width of a key     K  TOP_K
"""

import os
import time
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from dist_train.data.config import DataConfig
from dist_train.data.windows import load_forecast_data
from memory_index.bank import MemoryBank
from memory_index.builder import BankPlan, build_bank
from memory_index.config import BankConfig
from memory_index.exclusion import Exclusion, visible
from memory_index.faiss_training import trained_index
from memory_index.groups import RankGroup
from memory_index.index_choice import IndexChoice, bytes_per_entry, choose_index
from memory_index.loading import load_index
from memory_index.manifest import version_of
from memory_index.recall import SampleQueries, sample_ids
from memory_index.sharded_index import Encode, ShardedIndex
from memory_index.store import TRAINED, BankFolder
from model.config import GramConfig
from model.pattern_encoder import build_encoder, fingerprint

SEQ_LEN, PRED_LEN, D_REPR, SEED = 336, 96, 128, 0
NUM_QUERIES, QUERY_VARIATES, TOP_K = 224, 7, 5
ENCODE_CHUNK = 1024
ROUNDS, BRUTE_FORCE_ROUNDS = 41, 5  # a round of brute force takes seconds, and varies less
HNSW_ENTRIES = 50_000
KINDS = ("exact", "flat", "ivf_flat", "ivf_sq8", "ivf_pq")


def read_bank(root: str | None, quick: bool) -> tuple[MemoryBank, str]:
    """The bank, and the names of its data sets.

    Raises:
        DataError: weather or ETTm1 is not on this machine, and ``quick`` is false.
    """
    names = ["vic_elec"] if quick else ["weather", "ETTm1"]
    arrays: list[Any] = []
    ranges: list[tuple[int, int]] = []
    for name in names:
        config = DataConfig(dataset=name, root=root, seq_len=SEQ_LEN, pred_len=PRED_LEN)
        windows = load_forecast_data(config).windows["train"]
        arrays += windows.values
        ranges += windows.ranges
    limit = BankConfig(num_samples=60_000 if quick else None)
    return MemoryBank(arrays, ranges, SEQ_LEN, PRED_LEN, limit), "+".join(names)


def encode_all(bank: MemoryBank, cache: Path, group: RankGroup) -> Tensor:
    """Keys of all entries, each rank its share, kept in a cache. (M, Z2) float32, collective."""
    torch.manual_seed(SEED)
    encoder = build_encoder(GramConfig(d_repr=D_REPR), SEQ_LEN).eval()
    identity = {"encoder": fingerprint(encoder), "ids": int(bank.ids.sum()), "entries": len(bank)}
    path = cache / f"keys-{version_of(identity)}.npy"
    if not group.any(path.exists()):
        cache.mkdir(parents=True, exist_ok=True)
        mine = bank.ids.tensor_split(group.size)[group.rank]
        parts = []
        with torch.no_grad():
            for chunk in torch.split(mine, ENCODE_CHUNK):
                parts.append(encoder(bank.windows(chunk)).key)
        keys = group.gather_rows(torch.cat(parts))
        if keys is not None:
            np.save(path, keys.numpy())
    group.barrier()
    return torch.from_numpy(np.load(path))


def choose_queries(bank: MemoryBank, keys: Tensor, series: int) -> tuple[Tensor, Tensor]:
    """32 windows, 7 variates each, of one series. Keys (Q, Z2) and hidden ranges (Q, 2)."""
    own = (bank.series(bank.ids) == series).nonzero()[:, 0]
    starts = bank.starts(bank.ids[own])
    wanted = torch.unique(starts)
    wanted = wanted[torch.linspace(0, len(wanted) - 1, NUM_QUERIES // QUERY_VARIATES).long()]
    rows = [own[starts == start][:QUERY_VARIATES] for start in wanted.tolist()]
    chosen = torch.cat(rows)
    chosen = chosen[: len(chosen) // 4 * 4]  # a sampled bank lacks some; ranks ask alike
    ids = bank.ids[chosen]
    rule = Exclusion(seq_len=SEQ_LEN, pred_len=PRED_LEN, past_only=False)
    return keys[chosen], bank.hidden(bank.series(ids), bank.starts(ids), rule)


def brute_force(
    keys: Tensor, norms: Tensor, ids: Tensor, queries: Tensor, hidden: Tensor
) -> Tensor:
    """The obvious search: all products, the mask, the smallest. Ids (Q, K)."""
    scores = norms - 2 * (queries @ keys.T)
    scores.masked_fill_(~visible(hidden, ids), torch.inf)
    return ids[scores.topk(TOP_K, largest=False).indices]


def recall(found: Tensor, truth: Tensor) -> float:
    """Share of the true neighbours that were found. (Q, K) each."""
    return float((found[:, :, None] == truth[:, None]).any(dim=2).float().mean())


def cache_folder() -> Path:
    """Where keys and banks are kept for the next time."""
    root = os.environ.get("TIMELLM_CACHE") or "~/.cache/timellm-enhanced"
    return Path(root).expanduser() / "benchmarks"


def measure(
    rank: int, world_size: int, root: str | None, quick: bool, cache: Path
) -> dict[str, Any]:
    """Measure on this rank; the contestants without ranks run on rank 0 with all cores."""
    group = RankGroup(dist.new_group(backend="gloo"), range(world_size), rank)
    bank, name = read_bank(root, quick)
    keys = encode_all(bank, cache, group)
    position = torch.full((int(bank.ids[-1]) + 1,), -1, dtype=torch.int64)
    position[bank.ids] = torch.arange(len(bank))

    def encode(ids: Tensor) -> Tensor:
        return keys[position[ids]]

    result: dict[str, Any] = {"data": name, "entries": len(bank), "kinds": {}}
    last = int(bank.series(bank.ids).max())
    cases = [choose_queries(bank, keys, series) for series in range(last + 1)]
    norms = keys.square().sum(dim=1)
    truths = []
    if rank == 0:
        torch.set_num_threads(os.cpu_count() or 1)
        truths = [brute_force(keys, norms, bank.ids, *case) for case in cases]
        torch.set_num_threads(1)
    main = "ivf_flat"
    for kind in (*KINDS, "hnsw"):
        plan_ids = bank.ids if kind != "hnsw" else bank.ids[:: max(1, len(bank) // HNSW_ENTRIES)]
        began = time.monotonic()
        index, folder = _open(kind, plan_ids, encode, bank, cache, group, world_size)
        row: dict[str, Any] = {
            "entries": len(plan_ids),
            "open_s": round(time.monotonic() - began, 1),
            "effort": index.effort,
            "bytes_per_entry": bytes_per_entry(kind, keys.shape[1]) + 8,
        }
        found = _search_all(index, group, cases[0])
        rounds = 2 if index.effort == 0 else ROUNDS
        row["ms"] = 1000 * _median([_timed(index, group, cases[0]) for _ in range(rounds)])
        if rank == 0 and kind != "hnsw":
            row["recall_at_5"] = recall(found, truths[0])
        elif rank == 0:
            kept = encode(plan_ids)
            truth = brute_force(kept, kept.square().sum(dim=1), plan_ids, *cases[0])
            row["recall_at_5"] = recall(found, truth)
        result["kinds"][kind] = row
        if kind == main:
            result |= _compare(index, group, cases, truths, keys, norms, bank.ids, folder)
    return result


def _open(
    kind: str, ids: Tensor, encode: Encode, bank: MemoryBank, cache: Path, group: RankGroup,
    world_size: int,
) -> tuple[ShardedIndex, BankFolder]:  # fmt: skip
    config = BankConfig(index=kind, shard_group="world", memory_gib=64)  # type: ignore[arg-type]
    choice = choose_index(config, len(ids), 2 * D_REPR, on_gpu=False, ranks_per_node=world_size,
                          num_nodes=1)  # fmt: skip
    identity = {"benchmark": "retrieval", "ids": int(ids.sum()), "entries": len(ids), "index": kind}
    plan = BankPlan(
        choice=choice, entry_ids=ids, width=2 * D_REPR, identity=identity, fingerprint=str(SEED)
    )
    chosen = sample_ids(ids)
    rule = Exclusion(seq_len=SEQ_LEN, pred_len=PRED_LEN, past_only=False)
    hidden = bank.hidden(bank.series(chosen), bank.starts(chosen), rule)
    sample = SampleQueries(keys=encode(chosen), hidden=hidden)
    folder = BankFolder(cache / "banks", version_of(identity))
    if not group.any(folder.exists):
        build_bank(folder, plan, encode, sample, group)
    index = load_index(
        folder, plan, encode, sample, group, device=torch.device("cpu"), effort=None,
        min_recall=config.min_recall, refine=config.refine,
    )  # fmt: skip
    return index, folder


def _search(index: ShardedIndex, group: RankGroup, case: tuple[Tensor, Tensor]) -> Tensor:
    """Search, each rank its share of the queries. Ids of this rank's (Q / ranks, K)."""
    queries, hidden = (part.tensor_split(group.size)[group.rank] for part in case)
    _, ids = index.search(queries, hidden, TOP_K)
    return ids


def _search_all(index: ShardedIndex, group: RankGroup, case: tuple[Tensor, Tensor]) -> Tensor:
    """Search, and show every rank what all have found. (Q, K)."""
    return group.all_gather(_search(index, group, case)).flatten(0, 1)


def _timed(index: ShardedIndex, group: RankGroup, case: tuple[Tensor, Tensor]) -> float:
    group.barrier()
    began = time.perf_counter()
    _search(index, group, case)
    group.barrier()
    return time.perf_counter() - began


def _compare(
    index: ShardedIndex,
    group: RankGroup,
    cases: list[tuple[Tensor, Tensor]],
    truths: list[Tensor],
    keys: Tensor,
    norms: Tensor,
    ids: Tensor,
    folder: BankFolder,
) -> dict[str, Any]:
    """Ours, brute force and plain FAISS in turn; ratios of medians, the worse case of all."""
    cores = os.cpu_count() or 1
    plain = None
    if group.rank == 0:
        trained = folder.load(folder.open(), TRAINED)
        plain = trained_index(_flat_choice(index), trained)
        faiss.omp_set_num_threads(cores)
        plain.add_with_ids(keys.numpy(), ids.numpy())
        plain.nprobe = index.effort
    rows = []
    for number, case in enumerate(cases):
        asked = case[0].numpy()
        ours, brute, faiss_s = [], [], []
        for number_of_round in range(ROUNDS):
            ours.append(_timed(index, group, case))
            if group.rank == 0:
                assert plain is not None
                torch.set_num_threads(cores)
                faiss.omp_set_num_threads(cores)
                began = time.perf_counter()
                plain.search(asked, TOP_K)
                faiss_s.append(time.perf_counter() - began)
                if number_of_round < BRUTE_FORCE_ROUNDS:
                    began = time.perf_counter()
                    brute_force(keys, norms, ids, *case)
                    brute.append(time.perf_counter() - began)
                torch.set_num_threads(1)
                faiss.omp_set_num_threads(1)
            group.barrier()
        found = _search_all(index, group, case)
        if group.rank == 0:
            rows.append(
                {
                    "recall_at_5": recall(found, truths[number]),
                    "time_over_brute_force": _median(ours) / _median(brute),
                    "time_over_plain_faiss": _median_ratio(ours, faiss_s),
                    "ours_ms": 1000 * _median(ours),
                    "brute_force_ms": 1000 * _median(brute),
                    "plain_faiss_ms": 1000 * _median(faiss_s),
                }
            )
    if not rows:
        return {}
    worst = {
        "recall_at_5": min(row["recall_at_5"] for row in rows),
        "time_over_brute_force": max(row["time_over_brute_force"] for row in rows),
        "time_over_plain_faiss": max(row["time_over_plain_faiss"] for row in rows),
    }
    return {**worst, "cases": rows, "nprobe": index.effort}


def _flat_choice(index: ShardedIndex) -> IndexChoice:
    return IndexChoice(
        kind="ivf_flat", nlist=index.shard.max_effort, group="world", reason="the same lists"
    )


def _median(values: list[float]) -> float:
    return float(np.median(values))


def _median_ratio(over: list[float], under: list[float]) -> float:
    """Median of the ratios, round by round: the machine's speed drifts."""
    return float(np.median(np.array(over) / np.array(under)))
