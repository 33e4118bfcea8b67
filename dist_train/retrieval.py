"""From windows to their neighbours: keys, search in the memory, and what the model reads.

Shape legend (this file):
    B  windows     R  rows, B * N, row = b * N + n     L  seq_len     M  entries of the bank
    N  variates    K  top_k                            H  pred_len    Z2  width of a key
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dist_train import distributed
from dist_train.data.clock import check_clock, clock_offsets
from dist_train.data.collate import WindowBatch
from dist_train.data.windows import ForecastData
from memory_index.bank import MemoryBank
from memory_index.config import BankConfig
from memory_index.exact_shard import ExactShard
from memory_index.exclusion import Exclusion
from model.batch import RetrievedWindows, from_rows, to_rows
from model.config import GramConfig
from model.instance_norm import VARIANCE_FLOOR
from model.neighbour_weights import softmax_weights
from model.pattern_encoder import build_encoder, fingerprint

ENCODE_CHUNK = 1024


@dataclass(frozen=True, kw_only=True)
class Neighbours:
    """What a search found, nearest first."""

    ids: Tensor
    """Ids in the bank, -1 where there is none. Shape (R, K), int64, on the CPU."""

    weights: Tensor
    """softmax(-distance / temperature) with the searched keys, 0 where there is none. (R, K)."""


class Retriever:
    """The memory of a run on one rank: bank, encoder snapshot and exact index.

    Every rank holds the whole index and searches for its own rows, without communication. The
    search uses the encoder as it was at the last :meth:`refresh`.
    """

    def __init__(
        self,
        data: ForecastData,
        gram: GramConfig,
        bank: BankConfig,
    ) -> None:
        """Choose the entries: training windows with their futures. :meth:`refresh` comes next.

        Args:
            data: The series.
            gram: Key, number of neighbours, temperature.
            bank: Which windows become entries.

        Raises:
            DataError: Series overlap in time and share no clock, see
                :func:`dist_train.data.clock.check_clock`.
        """
        train = data.windows["train"]
        self.data = data
        self.gram = gram
        self.bank = MemoryBank(train.values, train.ranges, train.seq_len, train.pred_len, bank)
        self.encoder = build_encoder(gram, train.seq_len).requires_grad_(False).eval()
        self.fingerprint = ""
        self._anchored = gram.retrieval_key == "anchored"
        self._device = distributed.device()
        check_clock(data.series_set)
        offsets = clock_offsets(data.series_set)
        self._offsets = None if offsets is None else torch.from_numpy(offsets)
        self._index: ExactShard | None = None

    @property
    def needs_refresh(self) -> bool:
        """Whether the keys depend on trained parameters, and so grow stale."""
        return not self._anchored

    def snapshot(self) -> dict[str, Tensor]:
        """The encoder's state that the keys were made with."""
        return {name: value.clone() for name, value in self.encoder.state_dict().items()}

    @torch.no_grad()
    def refresh(self, state: Mapping[str, Tensor]) -> None:
        """Encode the bank anew, each rank its share, and search the new keys from now on.

        Collective.

        Args:
            state: State of the current encoder, equal on every rank; empty for anchored keys.
        """
        self.encoder.load_state_dict(dict(state))
        self.encoder.to(self._device)
        self.fingerprint = fingerprint(self.encoder)
        keys_MZ = torch.zeros(len(self.bank), self.encoder.key_width)
        rank, world_size = distributed.rank(), distributed.world_size()
        begin, end = (len(self.bank) * part // world_size for part in (rank, rank + 1))
        for first in range(begin, end, ENCODE_CHUNK):
            part = slice(first, min(first + ENCODE_CHUNK, end))
            windows_RL = self.bank.windows(self.bank.ids[part]).to(self._device)
            keys_MZ[part] = self.encoder(windows_RL).key.float().cpu()
        # Each key is one rank's and zero on the others, so the sum is the key itself.
        keys_MZ = distributed.reduce_sum(keys_MZ).to(self._device)
        ids = self.bank.ids
        places = self.place(self.bank.series(ids), self.bank.starts(ids))
        self._index = ExactShard(keys_MZ, ids, *places)

    @torch.no_grad()
    def search(
        self, context: Tensor, series: np.ndarray, starts: np.ndarray, *, past_only: bool
    ) -> Neighbours:
        """Find the neighbours of windows; never one that overlaps the window in time.

        Args:
            context: Standardised windows. Shape (B, L, N), float32.
            series: Number of the series of each window. Shape (B,), int64.
            starts: First row of each window. Shape (B,), int64.
            past_only: Only entries whose futures end before the forecast begins.
        """
        assert self._index is not None  # refresh() comes first
        num_variates = context.shape[2]
        rows_RL = to_rows(context).to(self._device)
        series_R, starts_R = self.place(
            *(torch.from_numpy(np.repeat(part, num_variates)) for part in (series, starts))
        )
        exclusion = self.exclusion(past_only=past_only)
        distances_RK, ids_RK = self._index.search(
            self.encoder(rows_RL).key.float(), series_R, starts_R, self.gram.top_k, exclusion
        )
        weights_RK = softmax_weights(distances_RK, ids_RK >= 0, self.gram.temperature)
        return Neighbours(ids=ids_RK.cpu(), weights=weights_RK.cpu())

    def place(self, series: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
        """Say where windows lie in time: which clock, and their first row on it.

        Series with a clock in common are one to the exclusion, as the variates of a wide file are:
        what happened at the same time elsewhere gives the answer away too.

        Args:
            series: Number of the series of each window. Shape (...), int64, on the CPU.
            starts: First row of each window in its series. Shape (...), int64, on the CPU.
        """
        if self._offsets is None:
            return series, starts
        return torch.zeros_like(series), starts + self._offsets[series]

    def exclusion(self, *, past_only: bool) -> Exclusion:
        """What a query must not see."""
        return Exclusion(
            seq_len=self.bank.seq_len, pred_len=self.bank.pred_len, past_only=past_only
        )

    def fetch(self, neighbours: Neighbours) -> RetrievedWindows:
        """Read what the model needs of the neighbours, onto this rank's device."""
        ids = neighbours.ids
        return RetrievedWindows(
            windows=self.bank.windows(ids).to(self._device),
            futures=self.bank.futures(ids, anchored=self._anchored).to(self._device),
            ids=ids.to(self._device),
            valid=(ids >= 0).to(self._device),
        )

    def search_batch(self, batch: WindowBatch, split: str) -> Neighbours:
        """Find the neighbours of a batch of ``data.windows[split]``."""
        series, starts = self.data.windows[split].locate_batch(batch.window_ids.cpu().numpy())
        return self.search(batch.context, series, starts, past_only=not split.startswith("train"))

    def retrieve(self, batch: WindowBatch, split: str) -> RetrievedWindows:
        """Find and read the neighbours of a batch of ``data.windows[split]``."""
        return self.fetch(self.search_batch(batch, split))

    def forecast(self, batch: WindowBatch, split: str) -> Tensor:
        """Forecast by retrieval alone: the weighted mean of the neighbours' futures.

        Each future is put onto the window's own level and scale; a row without neighbours
        repeats its last value, as level.

        Returns:
            Shape (B, H, N), float32, standardised, on the CPU.
        """
        return self.forecast_from(batch, self.search_batch(batch, split))

    def forecast_from(self, batch: WindowBatch, neighbours: Neighbours) -> Tensor:
        """Forecast by retrieval alone, see :meth:`forecast`, from neighbours found before."""
        futures_RKH = self.bank.futures(neighbours.ids, anchored=self._anchored)
        mean_RH = (neighbours.weights[..., None] * futures_RKH).sum(dim=1)
        rows_RL = to_rows(batch.context.cpu())
        scale_R1 = (rows_RL.var(dim=1, keepdim=True, correction=0) + VARIANCE_FLOOR).sqrt()
        found_R1 = (neighbours.ids >= 0).any(dim=1, keepdim=True)
        mean_R1 = rows_RL.mean(dim=1, keepdim=True)
        level_R1 = rows_RL[:, -1:] if self._anchored else mean_R1
        level_R1 = torch.where(found_R1, level_R1, rows_RL[:, -1:])
        forecast_RH = level_R1 + scale_R1 * mean_RH
        return from_rows(forecast_RH, batch.context.shape[2])
