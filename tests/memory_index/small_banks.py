"""Small banks on disk, built from plain keys."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from memory_index.builder import BankPlan, build_bank
from memory_index.groups import RankGroup
from memory_index.loading import load_index
from memory_index.manifest import version_of
from memory_index.recall import SampleQueries, sample_ids
from memory_index.sharded_index import ShardedIndex
from memory_index.store import BankFolder
from tests.memory_index.shards import choice_of

WIDTH, ENTRIES, CHANNELS, SPAN = 8, 3000, 2, 20


@dataclass(eq=False)
class Source:
    """Keys of a bank, and a count of how many of them were asked for."""

    seed: int = 0
    entries: int = ENTRIES
    encoded: int = 0

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        self.ids = torch.arange(self.entries) * 2 + 1
        steps = torch.randn(self.entries, WIDTH, generator=generator).cumsum(0) / 5
        self.keys = steps + 0.2 * torch.randn(self.entries, WIDTH, generator=generator)

    def encode(self, ids: Tensor) -> Tensor:
        self.encoded += len(ids)
        return self.keys[torch.searchsorted(self.ids, ids)]

    def hidden(self, ids: Tensor) -> Tensor:
        return torch.stack([(ids - SPAN).clamp_min(0), ids + SPAN], dim=1)

    @property
    def sample(self) -> SampleQueries:
        ids = sample_ids(self.ids)
        rows = torch.searchsorted(self.ids, ids)
        return SampleQueries(keys=self.keys[rows], hidden=self.hidden(ids))

    def plan(self, kind: str, **changes: Any) -> BankPlan:
        settings: dict[str, Any] = {
            "choice": choice_of(kind, nlist=20),
            "entry_ids": self.ids,
            "width": WIDTH,
            "identity": {"kind": kind, "seed": self.seed, "entries": self.entries},
            "fingerprint": f"encoder {self.seed}",
        }
        return BankPlan(**settings | changes)

    def folder(self, root: Path, kind: str) -> BankFolder:
        return BankFolder(root, version_of(self.plan(kind).identity))

    def build(self, root: Path, kind: str, group: RankGroup | None = None) -> BankFolder:
        folder = self.folder(root, kind)
        build_bank(folder, self.plan(kind), self.encode, self.sample, group or RankGroup())
        return folder

    def load(
        self, root: Path, kind: str, group: RankGroup | None = None, **changes: Any
    ) -> ShardedIndex:
        plan = changes.pop("plan", self.plan(kind))
        settings: dict[str, Any] = {
            "device": torch.device("cpu"), "effort": None, "min_recall": 0.98, "refine": 4,
        }  # fmt: skip
        return load_index(
            self.folder(root, kind), plan, self.encode, self.sample, group or RankGroup(),
            **settings | changes,
        )  # fmt: skip

    def questions(self) -> tuple[Tensor, Tensor]:
        ids = self.ids[::37]
        return self.keys[::37], self.hidden(ids)
