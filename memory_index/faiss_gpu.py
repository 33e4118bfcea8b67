"""FAISS on a CUDA device. Its GPU indexes ignore selectors, so the bank is cut into blocks of time.

A query skips the blocks that lie inside its hidden range, searches those outside it on the GPU,
and the one or two at its borders in their copies in host memory, where the exclusion is exact.

Shape legend (this file):
    Q  queries     Z2  width of a key     K  neighbours wanted     P  lists visited
"""

import functools
import threading
from collections.abc import Callable, Iterable
from typing import Any

import faiss
import numpy as np
import torch
from torch import Tensor

from memory_index.exact_shard import check_finite
from memory_index.faiss_ivf import IvfShard
from memory_index.index_choice import IndexChoice
from memory_index.merge import merge_neighbours

NUM_BLOCKS = 16
# By default FAISS would take 1.5 GiB of the memory that the training needs.
SCRATCH_BYTES = 256 * 2**20
# Largest k and nprobe of FAISS's GPU kernels.
GPU_LIMIT = 2048
# Sub-quantisers that FAISS's GPU kernels know; above the first number their tables are of half
# precision, or they would not fit into shared memory.
PQ_LENGTHS = (1, 2, 3, 4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64, 96)
LARGEST_WHOLE_PQ = 48

_of_thread = threading.local()

BlockSearch = Callable[[Tensor, int, int], tuple[Tensor, Tensor]]
"""(queries (Q, Z2), k, effort) -> distances and ids (Q, K), no exclusion."""


def is_there() -> bool:
    """Whether the installed FAISS has a GPU part, and sees a GPU."""
    return hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > 0


def nearest_on_gpu(queries: Tensor, keys: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Find the nearest rows by brute force. CUDA tensors (Q, Z2), (M, Z2) -> (Q, count) each."""
    import faiss.contrib.torch_utils  # FAISS then reads and writes CUDA tensors

    count = min(count, GPU_LIMIT)
    if not hasattr(_of_thread, "resources"):
        _of_thread.resources = _resources()
    asked, known = queries.contiguous(), keys.contiguous()
    device = queries.device.index
    distances, rows = faiss.knn_gpu(_of_thread.resources, asked, known, count, device=device)
    return distances, rows


class GpuIvfShard:
    """Inverted lists on a GPU, with a copy of each block of time in host memory."""

    def __init__(
        self,
        choice: IndexChoice,
        trained: dict[str, Tensor],
        parts: Iterable[tuple[Tensor, Tensor]],
        *,
        device: int,
        to_gpu: Callable[[IvfShard, int], BlockSearch] | None = None,
    ) -> None:
        """Fill the blocks and copy them to the GPU.

        Args:
            choice: Kind and number of lists.
            trained: What the shards share, see ``faiss_training``.
            parts: Codes, uint8 (m, bytes), and ids (m,), int64, ids ascending over all parts.
            device: Number of the GPU.
            to_gpu: Copies one block there; FAISS's own copier by default.
        """
        chunks = [part for part in parts if len(part[1])]
        per_block = max(1, -(-len(chunks) // NUM_BLOCKS))
        # Resources of this shard alone: one thread builds it while another searches the one before.
        copy = to_gpu or functools.partial(_copy_to_gpu, _resources())
        self._blocks: list[tuple[int, int, IvfShard, BlockSearch]] = []
        self._empty = IvfShard(choice, trained, [])
        for first in range(0, len(chunks), per_block):
            members = chunks[first : first + per_block]
            host = IvfShard(choice, trained, members)
            first_id, last_id = int(members[0][1][0]), int(members[-1][1][-1])
            self._blocks.append((first_id, last_id, host, copy(host, device)))

    def __len__(self) -> int:
        return sum(len(host) for _, _, host, _ in self._blocks)

    @property
    def max_effort(self) -> int:
        """Lists there are."""
        return self._empty.max_effort

    def route(self, queries: Tensor, effort: int) -> tuple[Tensor, Tensor]:
        """See :meth:`memory_index.faiss_ivf.IvfShard.route`."""
        return self._empty.route(queries, effort)

    def search(
        self,
        queries: Tensor,
        hidden: Tensor,
        k: int,
        effort: int,
        route: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`memory_index.faiss_ivf.IvfShard.search`."""
        check_finite("queries", queries)
        effort = route[0].shape[1]
        fits_gpu = k <= GPU_LIMIT and effort <= GPU_LIMIT
        found = [(queries.new_empty(len(queries), 0), hidden.new_empty(len(queries), 0))]
        for first_id, last_id, host, on_gpu in self._blocks:
            distances = queries.new_full((len(queries), k), torch.inf)
            ids = torch.full((len(queries), k), -1)
            inside = (hidden[:, 0] <= first_id) & (hidden[:, 1] > last_id)
            apart = (
                (hidden[:, 0] > last_id)
                | (hidden[:, 1] <= first_id)
                | (hidden[:, 0] >= hidden[:, 1])
            )
            if not fits_gpu:
                apart = torch.zeros_like(apart)
            if apart.any():
                distances[apart], ids[apart] = on_gpu(queries[apart], k, effort)
            border = ~inside & ~apart
            if border.any():
                lists, coarse = route[0][border], route[1][border]
                distances[border], ids[border] = host.search(
                    queries[border], hidden[border], k, effort, (lists, coarse)
                )
            found.append((distances, ids))
        columns = [torch.cat(part, dim=1) for part in zip(*found, strict=True)]
        return merge_neighbours(columns[0], columns[1], k)


def _copy_to_gpu(resources: Any, host: IvfShard, device: int) -> BlockSearch:
    index = host.faiss_index
    length = index.pq.M if isinstance(index, faiss.IndexIVFPQ) else None
    if length is not None and length not in PQ_LENGTHS:
        return search_in_tiles(index, index.d)
    options = faiss.GpuClonerOptions()
    options.indicesOptions = faiss.INDICES_64_BIT
    options.usePrecomputed = False
    options.useFloat16 = length is not None and length > LARGEST_WHOLE_PQ
    return search_in_tiles(faiss.index_cpu_to_gpu(resources, device, index, options), index.d)


def search_in_tiles(index: Any, width: int) -> BlockSearch:
    """Search a FAISS index of lists, so many queries at a time that the scratch memory is enough.

    Args:
        index: On a GPU, or a kind that no GPU knows, in host memory. ``nprobe`` is set, not passed:
            ``faiss.contrib.torch_utils`` takes search parameters from every index once imported.
        width: Of a key.
    """

    def search(queries: Tensor, k: int, effort: int) -> tuple[Tensor, Tensor]:
        index.nprobe = effort
        tile = max(1, SCRATCH_BYTES // 2 // (effort * width * 4))
        vectors = np.ascontiguousarray(queries.numpy(), dtype=np.float32)
        found = [
            index.search(vectors[begin : begin + tile], k) for begin in range(0, len(vectors), tile)
        ]
        distances, ids = (np.concatenate(part) for part in zip(*found, strict=True))
        return torch.from_numpy(distances), torch.from_numpy(ids)

    return search


def _resources() -> Any:
    """FAISS's memory and streams on GPUs. Without locks: of one thread at a time."""
    resources = faiss.StandardGpuResources()
    resources.setTempMemory(SCRATCH_BYTES)
    resources.setPinnedMemory(0)  # 256 MiB of the host for each of them
    return resources
