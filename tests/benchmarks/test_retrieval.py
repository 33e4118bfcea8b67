"""benchmarks/retrieval.py: the contestants do what they say, and every figure has its name."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import retrieval, retrieval_large, retrieval_search, retrieval_step
from benchmarks.rank_processes import peak_memory_gib, run_on_ranks
from dist_train.config import load_run_config
from memory_index.bank import MemoryBank
from memory_index.config import BankConfig


def test_brute_force_equals_a_loop():
    generator = torch.Generator().manual_seed(0)
    keys, queries = (torch.randn(size, 4, generator=generator) for size in (90, 7))
    ids = torch.arange(90) * 3
    hidden = torch.tensor([[30 * row, 30 * row + 60] for row in range(7)])
    found = retrieval_search.brute_force(keys, keys.square().sum(dim=1), ids, queries, hidden)
    for query, (first, end), got in zip(queries, hidden.tolist(), found.tolist(), strict=True):
        measured = [
            (float((key - query).square().sum()), name)
            for key, name in zip(keys, ids.tolist(), strict=True)
            if not first <= name < end
        ]
        assert set(got) == {name for _, name in sorted(measured)[: retrieval_search.TOP_K]}


def test_recall_is_the_share_of_true_neighbours():
    truth = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
    assert retrieval_search.recall(truth.flip(1), truth) == 1
    assert retrieval_search.recall(torch.tensor([[1, 2, 0, 9], [5, 0, 0, 9]]), truth) == 3 / 8


def test_queries_are_windows_of_one_series_that_hide_themselves():
    arrays = [np.random.default_rng(0).normal(size=(1200, n)).astype(np.float32) for n in (3, 8)]
    bank = MemoryBank(
        arrays,
        [(0, 1200)] * 2,
        retrieval_search.SEQ_LEN,
        retrieval_search.PRED_LEN,
        BankConfig(),
    )
    keys = torch.randn(len(bank), 2)
    queries, hidden = retrieval_search.choose_queries(bank, keys, 1)
    assert len(queries) == len(hidden) == retrieval_search.NUM_QUERIES
    own = torch.tensor([int((keys == query).all(dim=1).nonzero()[0]) for query in queries])
    assert (bank.series(bank.ids[own]) == 1).all()
    inside = (bank.ids[own] >= hidden[:, 0]) & (bank.ids[own] < hidden[:, 1])
    assert inside.all()


def test_copies_of_the_series_make_a_bank_of_the_wanted_size():
    config = load_run_config(retrieval_step.QUICKSTART)
    data = retrieval_step.widened_data(config, 200_000)
    windows = data.windows["train"]
    assert len(windows) * data.num_variates >= 200_000
    assert len({one.id for one in data.series_set.series}) == len(data.series_set.series) == 3
    first, second = (one.values for one in data.series_set.series[:2])
    assert not np.array_equal(first, second)
    assert np.corrcoef(first[:, 0], second[:, 0])[0, 1] > 0.99


def test_the_large_series_is_real_columns_and_noisy_copies(tmp_path: Path):
    path = retrieval_large.write_series(tmp_path, "vic_elec", None, 200_000)
    series = np.load(path, mmap_mode="r")
    starts = len(series) - retrieval_large.SEQ_LEN - retrieval_large.PRED_LEN + 1
    assert starts * series.shape[1] >= 200_000
    correlation = np.corrcoef(series[:, 0], series[:, 2])[0, 1]
    assert 0.9 < correlation < 0.99


def number_and_memory(rank: int, world_size: int, offset: int) -> dict[str, float]:
    if offset < 0 and rank == 1:
        raise ValueError("rank 1 says no")
    return {"rank": rank + offset, "gib": peak_memory_gib()}


@pytest.mark.slow
@pytest.mark.ranks
def test_ranks_return_their_figures_and_failures_are_told():
    first, second = run_on_ranks(number_and_memory, 2, 10)
    assert (first["rank"], second["rank"]) == (10, 11)
    assert 0.05 < first["gib"] < 4
    with pytest.raises(RuntimeError, match=r"exit codes of the ranks are \[0, 1\]"):
        run_on_ranks(number_and_memory, 2, -1)


def test_an_unknown_part_is_refused(capsys: pytest.CaptureFixture[str]):
    assert retrieval.main(["--parts", "search,speed"]) == 2
    assert "speed is none of search, step, large" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.ranks
def test_the_quick_run_prints_every_figure(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # The keys go to a cache of their own; the backbone stays where it is.
    monkeypatch.setattr(retrieval_search, "cache_folder", lambda: tmp_path)
    assert retrieval.main(["--quick"]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    for name in retrieval.HEADLINES:
        assert isinstance(figures[name], float), name
    assert figures["recall_at_5"] >= 0.95
    assert set(figures["kinds"]) == {"exact", "flat", "ivf_flat", "ivf_sq8", "ivf_pq", "hnsw"}
    assert figures["kinds"]["flat"]["recall_at_5"] == 1
    assert figures["quick"]
