"""dist_train/retrieval.py: however ranks share the index, each finds what one alone would find.

Ranks ask for different numbers of windows, the first one for none, and hold different chunks.
"""

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dist_train.data.collate import Collator
from dist_train.data.windows import ForecastData
from dist_train.retrieval import Retriever
from memory_index import placement
from memory_index.config import BankConfig
from model.config import GramConfig
from model.pattern_encoder import build_encoder
from tests.helpers.forecast_data import long_data, wide_data
from tests.helpers.ranks import run_ranks

pytestmark = pytest.mark.ranks

L, H = 40, 8
CASES = [  # exact kinds, and lists, whose parts share their centroids
    (index, key, name)
    for index in ("exact", "flat", "ivf_flat")
    for key, name in (("dual", "wide"), ("anchored", "long"))
]
NODES = ("0", "1", "0", "1")  # the node of each of four ranks, as torchrun numbers them


def noise(rows: int, variates: int) -> np.ndarray:
    return np.random.default_rng(rows).normal(size=(rows, variates)).cumsum(axis=0)


def data_of(name: str) -> ForecastData:
    if name == "wide":
        return wide_data(noise(400, 2), L, H)
    return long_data([(first, noise(300, 1)[:, 0]) for first in (0, 70, 400)], L, H)


def windows_asked(rank: int, count: int) -> list[int]:
    """As many as three times the rank, all over the split."""
    return list(range(rank, count, max(1, count // 12)))[: 3 * rank]


def search_as(
    rank: int, index: str, key: str, name: str, shard_group: str
) -> tuple[dict[str, Tensor], Retriever]:
    """Ids and weights that a rank finds, by split."""
    data = data_of(name)
    gram = GramConfig(use_gram=True, retrieval_key=key, d_repr=8)  # type: ignore[arg-type]
    bank = BankConfig(index=index, shard_group=shard_group)  # type: ignore[arg-type]
    torch.manual_seed(0)
    found = {}
    with closing(Retriever(data, gram, bank)) as retriever:
        retriever.refresh(build_encoder(gram, L).state_dict())
        for split in ("train", "val"):
            windows = data.windows[split]
            batch = Collator(windows, None)(windows_asked(rank, len(windows)))
            neighbours = retriever.search_batch(batch, split)
            assert len(neighbours.ids) == 3 * rank * windows.num_variates
            found |= {f"{split}-ids": neighbours.ids, f"{split}-weights": neighbours.weights}
    return found, retriever


def search_and_save(rank: int, world_size: int, out: Path) -> None:
    placement.SMALLEST_CHUNK = 64
    with pytest.MonkeyPatch.context() as patch:
        sizes = {"rank": 1, "world": world_size}
        if world_size == len(NODES):
            patch.setenv("GROUP_RANK", NODES[rank])
            sizes["node"] = NODES.count(NODES[rank])
        for case in CASES:
            for shard_group, size in sizes.items():
                found, retriever = search_as(rank, *case, shard_group)
                index = retriever.live.index
                assert index.group.size == size
                share = len(index.shard) / len(retriever.bank)
                assert share == 1 if size == 1 else 0 < share < 1
                if shard_group == "node":
                    assert index.group.ranks == ((0, 2) if rank % 2 == 0 else (1, 3))
                torch.save(found, out / "-".join([*case, shard_group, f"{rank}.pt"]))


@pytest.fixture(scope="module")
def alone() -> dict[tuple[str, ...], list[dict[str, Tensor]]]:
    """What each of four ranks would find if it were alone."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the ranks have: sums of floats depend on it
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(placement, "SMALLEST_CHUNK", 64)
        found = {case: [search_as(rank, *case, "rank")[0] for rank in range(4)] for case in CASES}
    torch.set_num_threads(threads)
    return found


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_every_way_of_sharing_finds_what_one_rank_finds(
    tmp_path: Path, alone: dict[tuple[str, ...], list[dict[str, Tensor]]], world_size: int
):
    run_ranks(search_and_save, world_size, tmp_path, timeout_s=400)
    files = sorted(tmp_path.glob("*.pt"))
    assert len(files) == len(CASES) * world_size * (3 if world_size == len(NODES) else 2)
    for path in files:
        *case, _, rank = path.stem.split("-")
        found, expected = torch.load(path), alone[tuple(case)][int(rank)]
        for name, tensor in found.items():
            if name.endswith("ids"):
                assert torch.equal(tensor, expected[name]), (path.stem, name)
            else:
                torch.testing.assert_close(tensor, expected[name], atol=1e-6, rtol=1e-5)
