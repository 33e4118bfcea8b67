"""From a bank on disk to this rank's part of the index, on any number of ranks.

Shape legend (this file):
    M  entries     Z2  width of a key     m  entries of a chunk
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress

import torch
from torch import Tensor

from memory_index.builder import BankPlan
from memory_index.exact_shard import ExactShard
from memory_index.faiss_flat import FlatShard
from memory_index.faiss_gpu import GpuIvfShard
from memory_index.faiss_hnsw import HnswShard
from memory_index.faiss_ivf import IvfShard
from memory_index.groups import RankGroup
from memory_index.manifest import Manifest, ManifestError, StaleMemoryError
from memory_index.recall import AT, SampleQueries, choose_effort, measure_recall, merge_nearest
from memory_index.shard import Shard, Unrouted
from memory_index.sharded_index import Encode, ShardedIndex
from memory_index.store import TRAINED, BankFolder, chunk_name


def check_manifest(manifest: Manifest, plan: BankPlan, folder: BankFolder) -> None:
    """Refuse a bank that is not the one that was planned.

    Raises:
        ManifestError: Its keys have another width, or its entries are others.
        StaleMemoryError: Another encoder made its keys.
    """
    if manifest.width != plan.width:
        raise ManifestError(
            f"{folder.path}: its keys are {manifest.width} wide, the encoder makes {plan.width} "
            "(gram.d_repr, gram.retrieval_key): use the bank's settings, or build it anew."
        )
    if manifest.fingerprint != plan.fingerprint:
        raise StaleMemoryError(
            f"{folder.path}: its keys were made by the encoder {manifest.fingerprint[:12]}, the "
            f"queries by {plan.fingerprint[:12]}: build the bank anew (bank.build=auto)."
        )
    if manifest.identity != plan.identity or manifest.num_entries != len(plan.entry_ids):
        differing = [
            key
            for key in sorted({*manifest.identity, *plan.identity})
            if manifest.identity.get(key) != plan.identity.get(key)
        ]
        raise ManifestError(
            f"{folder.path}: was built with another {', '.join(differing) or 'number of entries'}; "
            "use the bank's settings, or build it anew."
        )


def load_index(
    folder: BankFolder,
    plan: BankPlan,
    encode: Encode,
    sample: SampleQueries,
    group: RankGroup,
    *,
    device: torch.device,
    effort: int | None,
    min_recall: float,
    refine: int,
) -> ShardedIndex:
    """Load this rank's shard of a bank, and find out how hard to search; collective.

    Args:
        folder: The bank.
        plan: What it has to be.
        encode: Makes exact keys of entries.
        sample: Queries to measure recall with.
        group: Ranks that share one copy.
        device: Where the shard is searched.
        effort: Lists to visit, or candidates of the graph; None: what ``min_recall`` needs.
        min_recall: Share of the 5 nearest that has to be found.
        refine: Candidates per neighbour, where the bank holds codes only.

    Raises:
        ManifestError: A file is missing, altered, or of another bank.
        StaleMemoryError: Another encoder made the keys.
        OtherRankError: So it is on another rank of the group.
    """
    chunks = plan.placement.chunks_of(group.rank, group.size)
    nearest: list[dict[str, Tensor]] = []

    def parts() -> Iterator[tuple[Tensor, Tensor]]:
        for chunk in chunks:
            tensors = folder.load(manifest, chunk_name(chunk))
            ids = plan.entry_ids[plan.placement.entries(chunk)]
            kept = tensors.pop("codes") if "codes" in tensors else tensors.pop("keys")
            if len(kept) != len(ids):
                raise ManifestError(
                    f"{folder.path / chunk_name(chunk)}: holds {len(kept)} entries instead of "
                    f"{len(ids)}; build the bank anew."
                )
            if tensors:
                nearest.append(tensors)
            yield kept, ids

    with group.agree("Loading the memory bank"):
        manifest = folder.open()
        check_manifest(manifest, plan, folder)
        trained = folder.load(manifest, TRAINED) if plan.choice.nlist else {}
        shard = _make_shard(plan, trained, parts, device)
    index = ShardedIndex(
        shard,
        group,
        plan.entry_ids,
        effort=effort or 0,
        encode=None if plan.choice.stores_keys else encode,
        refine=refine,
    )
    if shard.max_effort and effort is None:
        index.effort = _tuned_effort(folder, index, sample, nearest, min_recall)
    return index


def _make_shard(
    plan: BankPlan,
    trained: dict[str, Tensor],
    parts: Callable[[], Iterator[tuple[Tensor, Tensor]]],
    device: torch.device,
) -> Shard:
    if trained:
        if device.type == "cuda":
            number = torch.cuda.current_device() if device.index is None else device.index
            return GpuIvfShard(plan.choice, trained, parts(), device=number)
        return IvfShard(plan.choice, trained, parts())
    pairs = list(parts())
    keys = torch.cat([torch.empty(0, plan.width), *(pair[0] for pair in pairs)])
    ids = torch.cat([torch.empty(0, dtype=torch.int64), *(pair[1] for pair in pairs)])
    if plan.choice.kind == "hnsw":
        return Unrouted(HnswShard(keys, ids))
    kind = FlatShard if plan.choice.kind == "flat" else ExactShard
    return Unrouted(kind(keys.to(device), ids))


def _tuned_effort(
    folder: BankFolder,
    index: ShardedIndex,
    sample: SampleQueries,
    nearest: list[dict[str, Tensor]],
    min_recall: float,
) -> int:
    """The effort that the bound needs, measured once per bank and kept beside it."""
    kept = folder.read_recall()
    if kept is not None and kept.get("refine") != index.refine:
        kept = None
    # Ranks may see the file at different moments: all of them have to read it, or none does.
    if index.group.any(kept is None):
        mine = merge_nearest(nearest, len(sample.keys))
        curve = measure_recall(index, sample, mine)
        if index.group.ranks[index.group.rank] == 0:
            found = {"queries": len(sample.keys), "at": AT, "refine": index.refine, "curve": curve}
            with suppress(OSError):  # a bank that can only be read is measured by every run
                folder.write_recall(found)
    else:
        assert kept is not None
        curve = kept["curve"]
    effort = choose_effort(curve, min_recall)
    if curve[effort] < min_recall and index.group.ranks[index.group.rank] == 0:
        warnings.warn(
            f"bank.min_recall={min_recall:g}: searching {folder.path} finds {curve[effort]:.3f} of "
            "the true neighbours at most; use bank.index=flat, which finds all, or a larger "
            "bank.refine.",
            stacklevel=2,
        )
    return effort
