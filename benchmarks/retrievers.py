"""Two retrievers to compare masks with: a published protocol's, and the project's own.

Shape legend (this file):
    B  windows of a split     L  seq_len      G  pooling factor, in time steps
    N  variates               H  pred_len     K  neighbours
    M  entries of the bank    Q  queries in one chunk
    R  rows, one per (window, variate)
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dist_train.data.windows import WindowSet
from memory_index.bank import MemoryBank
from memory_index.config import BankConfig
from memory_index.exact_shard import ExactShard
from memory_index.exclusion import Exclusion, visible
from model.instance_norm import normalize
from model.neighbour_weights import softmax_weights
from model.pattern_encoder import AnchoredEncoder

POOLINGS = (4, 2, 1)
TOP_K = 20
TEMPERATURE = 0.1
D_REPR = 128

# Queries per chunk: similarities to 8209 entries take 16 MiB, futures of 20 neighbours 17 MiB.
CHUNK_QUERIES = 512


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Windows:
    """Windows of one split, variates first."""

    context: Tensor
    """Standardised, oldest step first. Shape (B, N, L), float32."""

    target: Tensor
    """What followed. Shape (B, N, H), float32."""

    starts: Tensor
    """First row of each window in the series. Shape (B,), int64."""

    @property
    def anchored_target(self) -> Tensor:
        """The target minus the context's last value. Shape (B, N, H)."""
        return self.target - self.context[..., -1:]


def read_windows(windows: WindowSet, stride: int = 1) -> Windows:
    """Read every ``stride``-th window of a split of one series.

    Raises:
        ValueError: There are several series, whose starts do not compare.
    """
    if len(windows.values) != 1:
        raise ValueError(
            f"windows are of {len(windows.values)} series: this comparison is of overlaps in "
            "time, pass a data set of one."
        )
    ids_B = np.arange(0, len(windows), stride)
    context_BLN, target_BHN = windows.batch(ids_B)
    _, starts_B = windows.locate_batch(ids_B)
    return Windows(
        context=torch.from_numpy(context_BLN).transpose(1, 2).contiguous(),
        target=torch.from_numpy(target_BHN).transpose(1, 2).contiguous(),
        starts=torch.from_numpy(starts_B),
    )


def smallest_bank(seq_len: int, pred_len: int) -> int:
    """Entries per variate with which every masked query still finds its neighbours."""
    return 2 * (seq_len + pred_len) - 1 + TOP_K


def pearson_keys(context: Tensor, pooling: int) -> Tensor:
    """Make keys whose dot product is a correlation over all variates jointly.

    The pooled window minus its last pooled value, per variate; then all variates laid end to
    end, centred and of unit norm.

    Args:
        context: Standardised windows. Shape (B, N, L).
        pooling: Steps averaged into one, G; divides L.

    Returns:
        Shape (B, N * L / G), float32.
    """
    pooled_BNL = _pool(context, pooling)
    joint = (pooled_BNL - pooled_BNL[..., -1:]).flatten(1)
    return F.normalize(joint - joint.mean(dim=1, keepdim=True), dim=1)


def retrieve_by_pearson(
    bank: Windows, queries: Windows, pooling: int, exclusion: Exclusion
) -> Tensor:
    """Average the pooled futures of the most correlated windows.

    An entry is a window of all variates. Its value is its anchored future.

    Args:
        bank: All windows of the training split.
        queries: Windows to find neighbours for.
        pooling: Steps averaged into one, G; of keys and futures.
        exclusion: What a query must not see.

    Returns:
        Retrieved futures minus the query's last value. Shape (B, N, H / G), float32.

    Source: EVIDENCE 3; the scheme is RAFT's, Han et al. 2025 (arXiv:2505.04163).
    """
    keys_MD = pearson_keys(bank.context, pooling)
    futures_MNH = _pool(bank.anchored_target, pooling)
    parts = []
    for chunk in _chunks(len(queries.starts)):
        starts_Q = queries.starts[chunk]
        scores_QM = pearson_keys(queries.context[chunk], pooling) @ keys_MD.T
        visible_QM = visible(exclusion.hidden_range(starts_Q), bank.starts)
        scores_QK, rows_QK = scores_QM.masked_fill_(~visible_QM, -torch.inf).topk(TOP_K, dim=1)
        weights_QK = (scores_QK / TEMPERATURE).softmax(dim=1)
        parts.append(torch.einsum("qk,qknh->qnh", weights_QK, futures_MNH[rows_QK]))
    return torch.cat(parts)


class ProjectRetriever:
    """The memory as the project builds it: one entry per (variate, start), anchored keys."""

    def __init__(self, train: WindowSet) -> None:
        self.bank = MemoryBank(
            train.values, train.ranges, train.seq_len, train.pred_len, BankConfig()
        )
        self.encoder = AnchoredEncoder(train.seq_len, D_REPR)
        ids = self.bank.ids
        # Chunks, because reading a window of the bank reads its future as well.
        keys = [self.encoder(self.bank.windows(ids[part])).key for part in _chunks(len(ids))]
        self.shard = ExactShard(torch.cat(keys), ids)

    def retrieve(
        self, queries: Windows, top_ks: Sequence[int], exclusion: Exclusion
    ) -> list[Tensor]:
        """Average the futures of the nearest windows of any variate.

        Args:
            queries: Windows to find neighbours for.
            top_ks: Numbers of neighbours to average; one search serves them all.
            exclusion: What a query must not see.

        Returns:
            For each of ``top_ks``, retrieved futures on the query's scale, minus its last value.
            Shape (B, N, H) each, float32. A row without any visible neighbour is zero.
        """
        num_variates = queries.context.shape[1]
        rows_RL = queries.context.flatten(0, 1)
        starts_R = queries.starts.repeat_interleave(num_variates)
        _, _, scale_1R = normalize(rows_RL.T[None], "last")
        parts: list[list[Tensor]] = [[] for _ in top_ks]
        for chunk in _chunks(len(rows_RL)):
            starts_Q = starts_R[chunk]
            distances_QK, ids_QK = self.shard.search(
                self.encoder(rows_RL[chunk]).key,
                self.bank.hidden(torch.zeros_like(starts_Q), starts_Q, exclusion),
                max(top_ks),
            )
            futures_QKH = self.bank.futures(ids_QK, anchored=True)
            scale_Q1 = scale_1R.flatten()[chunk, None]
            for part, k in zip(parts, top_ks, strict=True):
                weights_QK = softmax_weights(distances_QK[:, :k], ids_QK[:, :k] >= 0, TEMPERATURE)
                mean_QH = torch.einsum("qk,qkh->qh", weights_QK, futures_QKH[:, :k])
                part.append(mean_QH * scale_Q1)
        lead = queries.context.shape[:2]
        return [torch.cat(part).reshape(*lead, -1) for part in parts]


def _pool(values: Tensor, pooling: int) -> Tensor:
    """Average neighbouring steps. (..., T) -> (..., T / G)."""
    return values.reshape(*values.shape[:-1], -1, pooling).mean(dim=-1)


def _chunks(length: int) -> list[slice]:
    return [slice(first, first + CHUNK_QUERIES) for first in range(0, length, CHUNK_QUERIES)]
