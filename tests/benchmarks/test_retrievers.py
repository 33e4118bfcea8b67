"""benchmarks/retrievers.py: both retrievers against loops over every entry."""

import numpy as np
import pytest
import torch

from benchmarks import retrievers
from benchmarks.retrieval_leak import exclusions
from benchmarks.retrievers import (
    TEMPERATURE,
    TOP_K,
    ProjectRetriever,
    pearson_keys,
    read_windows,
    retrieve_by_pearson,
    smallest_bank,
)
from dist_train.data.config import DataConfig
from dist_train.data.windows import ForecastData, WindowSet, load_forecast_data
from memory_index.exclusion import visible
from tests.helpers.series import write_series

L, H = 24, 8
SPANS = {"masked": L + H, "query_only": 1, "unmasked": 0}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ForecastData:
    path = write_series(tmp_path_factory.mktemp("leak") / "series.csv", rows=200)
    return load_forecast_data(DataConfig(path=str(path), seq_len=L, pred_len=H))


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(retrievers, "CHUNK_QUERIES", 7)  # many chunks, and a last one cut short


def softmax(scores: np.ndarray) -> np.ndarray:
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()


def pooled(values: np.ndarray, pooling: int) -> np.ndarray:
    """Average blocks of the first axis, one by one."""
    blocks = range(0, len(values), pooling)
    return np.stack([values[first : first + pooling].mean(axis=0) for first in blocks])


def pearson_by_loop(values: np.ndarray, start: int, entries: range, pooling: int, span: int):
    """The retrieved future of one window of all variates: (T, N) -> (N, H / G)."""

    def shape(at: int) -> np.ndarray:
        window = pooled(values[at : at + L], pooling)
        return (window - window[-1]).T.ravel()

    found = []
    for entry in entries:
        if abs(entry - start) >= span:
            future = values[entry + L : entry + L + H] - values[entry + L - 1]
            similarity = np.corrcoef(shape(start), shape(entry))[0, 1]
            found.append((similarity, pooled(future, pooling)))
    found.sort(key=lambda pair: -pair[0])
    weights = softmax(np.array([similarity for similarity, _ in found[:TOP_K]]) / TEMPERATURE)
    return sum(w * future for w, (_, future) in zip(weights, found, strict=False)).T


def own_by_loop(values: np.ndarray, start: int, variate: int, entries: range, span: int, k: int):
    """The retrieved future of one row on its own scale: (T, N) -> (H,)."""

    def anchored(at: int, column: int) -> tuple[np.ndarray, float]:
        window = values[at : at + L, column]
        scale = np.sqrt(window.var() + 1e-5)
        return (window - window[-1]) / scale, scale

    mine, scale = anchored(start, variate)
    found = []
    for entry in entries:
        for column in range(values.shape[1]):
            if abs(entry - start) >= span:
                theirs, their_scale = anchored(entry, column)
                future = values[entry + L : entry + L + H, column] - values[entry + L - 1, column]
                found.append((((mine - theirs) ** 2).mean(), future / their_scale))
    found.sort(key=lambda pair: pair[0])
    weights = softmax(-np.array([distance for distance, _ in found[:k]]) / TEMPERATURE)
    return scale * sum(w * future for w, (_, future) in zip(weights, found, strict=False))


def test_keys_multiply_to_the_correlation_over_all_variates():
    context = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))
    keys = pearson_keys(context, 2)
    windows = context.reshape(2, 3, 4, 2).mean(-1)
    flat = (windows - windows[..., -1:]).reshape(2, 12)
    torch.testing.assert_close(keys @ keys.T, torch.corrcoef(flat))


@pytest.mark.parametrize("mask", SPANS)
@pytest.mark.parametrize("pooling", [4, 1])
def test_pearson_matches_a_loop_over_the_windows_the_mask_leaves(
    data: ForecastData, mask: str, pooling: int
):
    train = data.windows["train"]
    bank, queries = read_windows(train), read_windows(train, stride=11)

    retrieved = retrieve_by_pearson(bank, queries, pooling, exclusions(L, H)[mask])

    entries, values = range(len(train)), train.values[0].astype(np.float64)
    slow = [
        pearson_by_loop(values, int(start), entries, pooling, SPANS[mask])
        for start in queries.starts
    ]
    np.testing.assert_allclose(retrieved.numpy(), np.stack(slow), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mask", SPANS)
def test_the_projects_retriever_matches_a_loop_over_the_rows_the_mask_leaves(
    data: ForecastData, mask: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(retrievers, "D_REPR", L)  # no pooling, which the loop does without
    train = data.windows["train"]
    queries = read_windows(train, stride=29)

    retrieved = ProjectRetriever(train).retrieve(queries, (5, 20), exclusions(L, H)[mask])

    entries, values = range(len(train)), train.values[0].astype(np.float64)
    for k, futures in zip((5, 20), retrieved, strict=True):
        slow = [
            [own_by_loop(values, int(start), n, entries, SPANS[mask], k) for n in range(2)]
            for start in queries.starts
        ]
        np.testing.assert_allclose(futures.numpy(), np.array(slow), rtol=1e-4, atol=1e-5)


def test_the_smallest_bank_leaves_the_query_in_its_middle_just_enough():
    starts = torch.arange(smallest_bank(L, H))
    seen = visible(exclusions(L, H)["masked"].hidden_range(starts), starts)
    assert int(seen.sum(dim=1).min()) == TOP_K


def test_refuses_several_series():
    values = [np.zeros((50, 1), dtype=np.float32)] * 2
    with pytest.raises(ValueError, match=r"of 2 series: .* pass a data set of one"):
        read_windows(WindowSet(values, [(0, 50)] * 2, L, H))
