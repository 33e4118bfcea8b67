"""Look into a trained run: its prototypes' words, and what the patches of real windows attend to.

Shape legend (this file):
    B  windows in a batch    L  seq_len             S  num_prototypes
    N  variates              P  patches per row     G  n_heads
    R  B * N rows, row = b * N + n                  K  prototypes listed per patch
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dist_train.data.collate import Collator
from dist_train.data.windows import ForecastData
from dist_train.loading import LoadedRun
from model.inspection import (
    AttentionSums,
    PrototypeWords,
    attention_in_parts,
    chance_cosines,
    find_words,
    observing,
)


@dataclass(frozen=True, kw_only=True)
class InspectedWindow:
    """One window, and what its patches attend to."""

    window: int
    """Its number in the split."""

    series: str
    """Id of its series."""

    variates: tuple[str, ...]
    """Names of the variates that were looked at, n of them."""

    dates: np.ndarray
    """Time stamps of the history. Shape (L,), datetime64."""

    history: np.ndarray
    """What the model saw, in original units. Shape (L, n)."""

    bounds: list[tuple[int, int]]
    """First step and end of each of the P patches."""

    attention: Tensor
    """Mean over the heads. Shape (n, P, S), float32, on the CPU."""

    head_first: Tensor
    """Prototypes each head attends to most, the first the most. Shape (n, G, P, K), int64."""

    head_weights: Tensor
    """Their attention. Shape (n, G, P, K), float32."""


def inspect_words(run: LoadedRun, count: int) -> tuple[PrototypeWords, Tensor]:
    """Find ``count`` words per prototype, and the cosines that chance reaches. (S, K) and (S,)."""
    layer, words = run.module.prototypes, run.module.backbone.word_embeddings
    return find_words(layer, words, count), chance_cosines(words, layer.mapping.out_features)


def sum_attention(
    run: LoadedRun, data: ForecastData, split: str, window_ids: Sequence[int]
) -> AttentionSums:
    """Sum up what all patches of some windows attend to, in the pass that forecasts them."""
    layer = run.module.reprogramming
    sums = AttentionSums(layer.n_heads, run.module.prototypes.mapping.out_features)
    size = run.config.train.eval_batch_size
    for begin in range(0, len(window_ids), size):
        ids = [int(number) for number in window_ids[begin : begin + size]]
        patches_RPD, prototypes_SE = _observe(run, data, split, ids)
        for attention in attention_in_parts(layer, patches_RPD, prototypes_SE):
            sums.add(attention)
    return sums


def inspect_windows(
    run: LoadedRun,
    data: ForecastData,
    split: str,
    window_ids: Sequence[int],
    *,
    variates: Sequence[int],
    top: int,
) -> Iterator[InspectedWindow]:
    """Compute what the patches of single windows attend to.

    Args:
        run: The trained forecaster.
        data: The series it was trained on.
        split: train, val or test.
        window_ids: Numbers of the windows.
        variates: Numbers of the variates to look at, n of them; the model reads all.
        top: Prototypes listed per patch and head, K.
    """
    layer, windows = run.module.reprogramming, data.windows[split]
    for number in window_ids:
        patches_RPD, prototypes_SE = _observe(run, data, split, [int(number)])
        means, firsts, weights = [], [], []
        for attention in attention_in_parts(layer, patches_RPD[list(variates)], prototypes_SE):
            first = attention.topk(top, dim=-1)
            means.append(attention.mean(dim=1).cpu())
            firsts.append(first.indices.cpu())
            weights.append(first.values.cpu())
        series, start = windows.locate(int(number))
        one, steps = data.series_set.series[series], slice(start, start + windows.seq_len)
        yield InspectedWindow(
            window=int(number),
            series=one.id,
            variates=tuple(
                data.channel_names[series * data.num_variates + index] for index in variates
            ),
            dates=one.dates[steps],
            history=one.values[steps][:, list(variates)],
            bounds=run.module.patching.bounds(windows.seq_len),
            attention=torch.cat(means),
            head_first=torch.cat(firsts),
            head_weights=torch.cat(weights),
        )


def _observe(
    run: LoadedRun, data: ForecastData, split: str, ids: list[int]
) -> tuple[Tensor, Tensor]:
    """Forecast a batch, and return what its reprogramming was given: (R, P, D) and (S, E)."""
    batch = Collator(data.windows[split], run.prompt_builder)(ids)
    with observing(run.module.reprogramming) as seen:
        run.forecast(batch, split)
    ((patches_RPD, prototypes_SE),) = seen
    return patches_RPD, prototypes_SE
