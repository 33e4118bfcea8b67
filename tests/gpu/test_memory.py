"""FAISS on one CUDA device against the exact search on the CPU, the exclusion included."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from memory_index.config import BankConfig
from memory_index.exact_shard import ExactShard
from memory_index.faiss_flat import FlatShard
from memory_index.faiss_gpu import GpuIvfShard
from memory_index.faiss_ivf import IvfShard
from memory_index.faiss_training import train_codes
from memory_index.index_choice import IndexChoice
from model.config import GramConfig
from tests.gpu.test_training import train
from tests.helpers.runs import tiny_run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]

ENTRIES, WIDTH, CHANNELS, SPAN, K = 40_000, 32, 4, 60, 5
IVF_KINDS = ("ivf_flat", "ivf_sq8", "ivf_pq")


def entries() -> tuple[Tensor, Tensor]:
    """Keys that change slowly over time, as those of overlapping windows do, and their ids."""
    generator = torch.Generator().manual_seed(0)
    steps = torch.randn(ENTRIES // CHANNELS, WIDTH, generator=generator).cumsum(0) / 10
    noise = torch.randn(ENTRIES, WIDTH, generator=generator) * 0.3
    return steps.repeat_interleave(CHANNELS, 0) + noise, torch.arange(ENTRIES)


def queries(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Entries as queries, with all kinds of hidden ranges: own surroundings, the future, none."""
    chosen = torch.arange(0, ENTRIES, 173)
    starts = chosen // CHANNELS
    first, end = (starts - SPAN + 1).clamp_min(0), starts + SPAN
    end[::3] = ENTRIES // CHANNELS  # validation: nothing later
    first[1::7], end[1::7] = 0, 0
    return keys[chosen], torch.stack([first, end], dim=1) * CHANNELS


@pytest.mark.parametrize("kind", [ExactShard, FlatShard])
def test_exact_kinds_find_on_the_gpu_what_the_cpu_finds(kind: type[ExactShard]):
    keys, ids = entries()
    keys[5000:9000] = keys[5000]  # windows without variance have equal keys
    asked, hidden = queries(keys)
    expected = ExactShard(keys, ids).search(asked, hidden, K)
    found = kind(keys.cuda(), ids).search(asked.cuda(), hidden, K)
    assert torch.equal(found[1].cpu(), expected[1])
    torch.testing.assert_close(found[0].cpu(), expected[0], rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", IVF_KINDS)
def test_lists_on_the_gpu_find_what_lists_on_the_cpu_find(kind: str):
    keys, ids = entries()
    choice = IndexChoice(kind=kind, nlist=64, group="rank", reason="")  # type: ignore[arg-type]
    trained = train_codes(choice, keys)
    coder = IvfShard(choice, trained, [])
    parts = [(coder.encode(keys[part]), ids[part]) for part in ids.split(1500)]
    host, gpu = IvfShard(choice, trained, parts), GpuIvfShard(choice, trained, parts, device=0)
    asked, hidden = queries(keys)
    route = host.route(asked, 8)
    expected_distances, expected = host.search(asked, hidden, K, 8, route)
    distances, found = gpu.search(asked, hidden, K, 8, route)
    seen = (found >= hidden[:, :1]) & (found < hidden[:, 1:])
    assert not seen.any()
    agreement = (found[:, :, None] == expected[:, None]).any(dim=2).float().mean()
    assert agreement > 0.995  # nearly equal distances may swap at the border of K
    torch.testing.assert_close(distances, expected_distances, rtol=1e-3, atol=1e-3)


def test_the_index_takes_little_more_gpu_memory_than_its_vectors():
    keys, ids = entries()
    choice = IndexChoice(kind="ivf_flat", nlist=64, group="rank", reason="")
    trained = train_codes(choice, keys)
    coder = IvfShard(choice, trained, [])
    torch.cuda.synchronize()
    before = torch.cuda.mem_get_info()[0]
    shard = GpuIvfShard(choice, trained, [(coder.encode(keys), ids)], device=0)
    used = before - torch.cuda.mem_get_info()[0]
    assert len(shard) == ENTRIES
    assert used < 4 * ENTRIES * WIDTH * 4 + 600 * 2**20  # scratch, and CUDA's own context


@pytest.mark.parametrize("index", ["exact", "flat", "ivf_flat"])
def test_trains_with_the_memory_on_the_gpu_under_nccl(tmp_path: Path, index: str):
    base = tiny_run(tmp_path)
    gram = GramConfig(use_gram=True, d_repr=16, refresh_every=4, refresh_lag=2)
    bank = BankConfig(index=index, device="gpu")  # type: ignore[arg-type]
    run = train(replace(base, gram=gram, bank=bank), on_gpu=True)
    result = json.loads((run / "result.json").read_text())
    assert result["val_mse"] <= result["ridge_val_mse"] * (1 + 1e-3)
