"""A small bank whose keys are a table, so that every build of it has the same bits."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import Tensor

from memory_index import placement
from memory_index.builder import BankPlan, build_bank
from memory_index.groups import RankGroup
from memory_index.loading import load_index
from memory_index.manifest import version_of
from memory_index.recall import SampleQueries, sample_ids
from memory_index.sharded_index import ShardedIndex
from memory_index.store import BankFolder
from tests.memory_index.shards import choice_of

WIDTH, CHUNK, ENTRIES = 8, 64, 600
TABLE = torch.randn(2000, WIDTH, generator=torch.Generator().manual_seed(5))
IDS = torch.arange(ENTRIES) * 3 + 1
QUERIES = torch.randn(40, WIDTH, generator=torch.Generator().manual_seed(6))
HIDDEN = torch.tensor([[0, 0], [0, 900], [300, 310], [191 * 3, 256 * 3], [1500, 9999]]).repeat(8, 1)


def small_chunks(patch: pytest.MonkeyPatch | None = None) -> None:
    """Cut banks into ten chunks; for good, in a process that ends soon."""
    (patch or pytest.MonkeyPatch()).setattr(placement, "SMALLEST_CHUNK", CHUNK)


@dataclass
class Encoder:
    """Looks keys up, and remembers what it was asked for."""

    asked: list[int] = field(default_factory=list)

    def __call__(self, ids: Tensor) -> Tensor:
        self.asked += ids.tolist()
        return TABLE[ids]


def plan_of(kind: str, ids: Tensor = IDS, fingerprint: str = "the first encoder") -> BankPlan:
    choice = choice_of(kind)
    identity = {
        "entries": len(ids),
        "encoder": fingerprint,
        "index": choice.kind,
        "nlist": choice.nlist,
    }
    return BankPlan(
        choice=choice, entry_ids=ids, width=WIDTH, identity=identity, fingerprint=fingerprint
    )


def folder_of(root: Path, plan: BankPlan) -> BankFolder:
    return BankFolder(root, version_of(plan.identity))


def sample_of(plan: BankPlan) -> SampleQueries:
    ids = sample_ids(plan.entry_ids)[::8]
    return SampleQueries(keys=TABLE[ids], hidden=torch.stack([ids - 30, ids + 31], dim=1))


def build(
    root: Path, plan: BankPlan, group: RankGroup | None = None, encode: Encoder | None = None
) -> BankFolder:
    """Build a bank; collective over the group."""
    folder = folder_of(root, plan)
    build_bank(folder, plan, encode or Encoder(), sample_of(plan), group or RankGroup())
    return folder


def load(
    folder: BankFolder,
    plan: BankPlan,
    group: RankGroup | None = None,
    encode: Encoder | None = None,
    *,
    effort: int | None = None,
    min_recall: float = 0.98,
    refine: int = 4,
) -> ShardedIndex:
    """Load a bank; collective over the group."""
    return load_index(
        folder,
        plan,
        encode or Encoder(),
        sample_of(plan),
        group or RankGroup(),
        device=torch.device("cpu"),
        effort=effort,
        min_recall=min_recall,
        refine=refine,
    )
