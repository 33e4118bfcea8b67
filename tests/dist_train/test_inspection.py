"""dist_train/inspection.py: what is told of a run is what its forecast really attends to."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dist_train.data.collate import Collator
from dist_train.data.windows import ForecastData
from dist_train.inspection import inspect_windows, inspect_words, sum_attention
from dist_train.loading import LoadedRun, load_run, load_training_data

P, S, G = 11, 12, 2


@pytest.fixture(scope="module")
def run(finished_run: Path) -> LoadedRun:
    return load_run(finished_run)


@pytest.fixture(scope="module")
def data(run: LoadedRun) -> ForecastData:
    return load_training_data(run.config, run.series)


def attention_by_loop(run: LoadedRun, data: ForecastData, window: int) -> Tensor:
    """The attention of one window's variates, from what the layer's parts see. (N, G, P, S)."""
    layer, seen = run.module.reprogramming, {}
    handles = [
        getattr(layer, name).register_forward_hook(
            lambda module, inputs, output, name=name: seen.setdefault(name, output)
        )
        for name in ("query", "key")
    ]
    run.forecast(Collator(data.windows["test"], run.prompt_builder)([window]), "test")
    for handle in handles:
        handle.remove()
    maps = torch.empty(data.num_variates, G, P, S)
    for row in range(data.num_variates):
        for head in range(G):
            mine = slice(8 * head, 8 * head + 8)
            for patch in range(P):
                query = seen["query"][row * P + patch, mine]
                maps[row, head, patch] = torch.softmax(seen["key"][:, mine] @ query / 8**0.5, 0)
    return maps


def test_windows_show_the_attention_of_their_forecast(run: LoadedRun, data: ForecastData):
    ids = [3, 40]
    shown = list(inspect_windows(run, data, "test", ids, variates=[0, 1], top=4))
    for window, number in zip(shown, ids, strict=True):
        maps = attention_by_loop(run, data, number)
        torch.testing.assert_close(window.attention, maps.mean(dim=1))
        torch.testing.assert_close(window.head_weights, maps.sort(descending=True).values[..., :4])
        torch.testing.assert_close(maps.gather(-1, window.head_first), window.head_weights)
        _, start = data.windows["test"].locate(number)
        series = data.series_set.series[0]
        np.testing.assert_array_equal(window.history, series.values[start : start + 48])
        np.testing.assert_array_equal(window.dates, series.dates[start : start + 48])
        assert (window.window, window.series) == (number, series.id)
        assert window.variates == ("v0", "v1")
        assert window.bounds == [(4 * patch, 4 * patch + 8) for patch in range(P)]


def test_one_variate_is_the_same_as_among_all(run: LoadedRun, data: ForecastData):
    (both,) = inspect_windows(run, data, "test", [5], variates=[0, 1], top=1)
    (second,) = inspect_windows(run, data, "test", [5], variates=[1], top=1)
    assert second.variates == ("v1",)
    assert torch.equal(second.attention[0], both.attention[1])
    np.testing.assert_array_equal(second.history[:, 0], both.history[:, 1])


def test_sums_over_windows_match_a_loop(run: LoadedRun, data: ForecastData):
    ids = list(range(0, 70, 1))  # more than one batch of 64
    sums = sum_attention(run, data, "test", ids)
    maps = torch.stack([attention_by_loop(run, data, number) for number in ids]).double()
    assert sums.num_patches == len(ids) * 2 * P
    torch.testing.assert_close(sums.usage_per_head, maps.mean(dim=(0, 1, 3)), atol=1e-6, rtol=1e-4)
    assert float(sums.usage.sum()) == pytest.approx(1)
    assert float(sums.share_first.sum()) == pytest.approx(1)


def test_words_are_those_of_the_trained_prototypes(run: LoadedRun):
    found, chance = inspect_words(run, 5)
    words = run.module.backbone.word_embeddings
    centred = words - words.mean(dim=0)
    with torch.no_grad():
        prototypes = run.module.prototypes.word_weights(run.module.words(), words) @ centred
        prototypes += run.module.prototypes.mapping.bias[:, None]
    own = prototypes - prototypes.mean(dim=0)
    cosines = torch.cosine_similarity(own[:, None], centred[None], dim=-1)
    assert torch.equal(found.nearest, cosines.topk(5).indices)
    assert chance.shape == (S,)
