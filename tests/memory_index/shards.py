"""Shards of every kind, from plain keys and ids."""

from collections.abc import Sequence
from typing import get_args

import faiss
import numpy as np
import torch
from torch import Tensor

from memory_index.config import IndexKind
from memory_index.exact_shard import ExactShard
from memory_index.faiss_flat import FlatShard
from memory_index.faiss_gpu import BlockSearch, GpuIvfShard
from memory_index.faiss_hnsw import HnswShard
from memory_index.faiss_ivf import IvfShard
from memory_index.faiss_training import train_codes
from memory_index.groups import RankGroup
from memory_index.index_choice import IndexChoice
from memory_index.placement import Placement
from memory_index.shard import Shard, Unrouted
from memory_index.sharded_index import ShardedIndex

KINDS: tuple[str, ...] = get_args(IndexKind)
IVF_KINDS = tuple(kind for kind in KINDS if kind.startswith("ivf"))
NLIST = 8


def choice_of(kind: str, nlist: int = NLIST) -> IndexChoice:
    """What ``choose_index`` would say for that kind."""
    lists = nlist if kind.startswith("ivf") else 0
    return IndexChoice(kind=kind, nlist=lists, group="world", reason="a test")  # type: ignore[arg-type]


def train(kind: str, keys: Tensor, nlist: int = NLIST) -> dict[str, Tensor]:
    """Train what the shards of an ivf kind share; empty for the others."""
    return train_codes(choice_of(kind, nlist), keys) if kind.startswith("ivf") else {}


def parts_of(
    keys: Tensor, ids: Tensor, shard: int = 0, num_shards: int = 1
) -> list[tuple[Tensor, Tensor]]:
    """Chunks of one shard: keys and ids."""
    placement = Placement(num_entries=len(ids))
    chunks = [placement.entries(chunk) for chunk in placement.chunks_of(shard, num_shards)]
    return [(keys[chunk], ids[chunk]) for chunk in chunks]


def make_shard(
    kind: str,
    parts: Sequence[tuple[Tensor, Tensor]],
    width: int,
    trained: dict[str, Tensor] | None = None,
    *,
    on_gpu: bool = False,
) -> Shard:
    """Make one rank's part of an index out of chunks of keys and ids."""
    if kind.startswith("ivf"):
        assert trained
        choice = choice_of(kind, len(trained["centroids"]))
        coder = IvfShard(choice, trained, [])
        codes = [(coder.encode(keys), ids) for keys, ids in parts]
        if on_gpu:
            return GpuIvfShard(choice, trained, codes, device=0, to_gpu=search_without_selector)
        return IvfShard(choice, trained, codes)
    keys = torch.cat([torch.empty(0, width), *(part[0] for part in parts)])
    ids = torch.cat([torch.empty(0, dtype=torch.int64), *(part[1] for part in parts)])
    if kind == "hnsw":
        return Unrouted(HnswShard(keys, ids))
    return Unrouted(FlatShard(keys, ids) if kind == "flat" else ExactShard(keys, ids))


def make_index(
    kind: str, shard: Shard, group: RankGroup, keys: Tensor, ids: Tensor, effort: int
) -> ShardedIndex:
    """Make an index as ``load_index`` does: what is only coded is measured again by its keys."""
    coded = kind in ("ivf_sq8", "ivf_pq")
    encode = (lambda wanted: keys[torch.searchsorted(ids, wanted)]) if coded else None
    return ShardedIndex(shard, group, ids, effort=effort, encode=encode, refine=4)


def search_without_selector(host: IvfShard, device: int) -> BlockSearch:
    """What a GPU does with a block: its lists are searched, and nothing is left out."""
    del device
    index = host.faiss_index

    def search(queries: Tensor, k: int, effort: int) -> tuple[Tensor, Tensor]:
        vectors = np.ascontiguousarray(queries.numpy(), dtype=np.float32)
        settings = faiss.SearchParametersIVF(nprobe=effort)
        if isinstance(index, faiss.IndexIVFPQ):
            # One by one: FAISS rounds the distances to centroids, which product codes add to, by
            # how many queries come together.
            found = [index.search(vector[None], k, params=settings) for vector in vectors]
            distances, ids = (np.concatenate(part) for part in zip(*found, strict=True))
        else:
            distances, ids = index.search(vectors, k, params=settings)
        return torch.from_numpy(distances), torch.from_numpy(ids)

    return search
