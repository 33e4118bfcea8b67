"""Settings of the memory bank: which windows it holds, how they are searched, where it lies.

Free of torch, so that a configuration is read and refused before anything heavy is imported.
"""

from dataclasses import dataclass
from typing import Literal

IndexKind = Literal["exact", "flat", "ivf_flat", "ivf_sq8", "ivf_pq", "hnsw"]


@dataclass(frozen=True, kw_only=True)
class BankConfig:
    """Which training windows become entries, and how they are searched and kept."""

    bank_stride: int = 1
    """Time steps between the starts of neighbouring entries."""

    num_samples: int | None = None
    """Entries sampled evenly over time and variates; none: all of them."""

    max_memory_size: int | None = None
    """Most entries the bank may hold; a larger bank is sampled evenly. None: no limit."""

    index: Literal["auto"] | IndexKind = "auto"
    """auto: by size. exact (torch) and flat (FAISS) miss nothing; the others are faster."""

    nlist: int | None = None
    """Lists of the ivf kinds; none: 4 sqrt(entries)."""

    nprobe: int | None = None
    """Lists that one query visits (efSearch of hnsw); none: the fewest that reach min_recall."""

    min_recall: float = 0.98
    """Share of the 5 nearest that a tuned nprobe finds, on a sample of training windows."""

    refine: int = 4
    """Candidates per neighbour that ivf_sq8 and ivf_pq measure again with exact keys."""

    shard_group: Literal["auto", "rank", "node", "world"] = "auto"
    """Ranks that share one copy of the index; auto: rank where it is small, else a node's."""

    device: Literal["auto", "cpu", "gpu"] = "auto"
    """Where the index is searched; auto: on the GPU where there is one."""

    memory_gib: float = 4.0
    """GiB that the index may take on each rank, of GPU memory where it is searched there."""

    path: str | None = None
    """Folder that holds banks, shared by runs; none: bank/ in the run's folder."""

    build: Literal["auto", "always", "never"] = "auto"
    """auto: build the bank unless one that fits lies in its folder; never: refuse instead."""

    def __post_init__(self) -> None:
        if self.bank_stride < 1:
            raise ValueError(
                f"bank.bank_stride must be at least 1, got {self.bank_stride}: "
                "1 makes every training window an entry."
            )
        for key in ("num_samples", "max_memory_size"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ValueError(
                    f"bank.{key} must be at least 1, got {value}: leave it out for no limit, "
                    "or use gram.use_gram=false to build no memory."
                )
        for key in ("nlist", "nprobe", "refine"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ValueError(f"bank.{key} must be at least 1, got {value}: leave it out.")
        if not 0 < self.min_recall <= 1:
            raise ValueError(
                f"bank.min_recall must be in (0, 1], got {self.min_recall}: "
                "it is the share of the nearest that a search finds."
            )
        if not self.memory_gib > 0:
            raise ValueError(
                f"bank.memory_gib must be positive, got {self.memory_gib}: it is GiB per rank."
            )
        if self.device == "gpu" and self.index == "hnsw":
            raise ValueError(
                "bank.index=hnsw is searched on the CPU only, got bank.device=gpu: "
                "use bank.device=cpu, or an ivf kind."
            )

    @property
    def limit(self) -> int | None:
        """The most entries a bank of these settings has; None: as many as there are windows."""
        limits = [size for size in (self.num_samples, self.max_memory_size) if size is not None]
        return min(limits, default=None)
