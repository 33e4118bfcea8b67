"""From windows to their neighbours: search in the memory, and what the model reads.

Searches are collective where the index is shared between ranks. All of them go through one thread
in the order in which they were asked for, so a search for the next batch can run while the current
one computes, and the ranks still stay in step.

Shape legend (this file):
    B  windows     R  rows, B * N, row = b * N + n     L  seq_len     M  entries of the bank
    N  variates    K  top_k                            H  pred_len    Z  width of a key
"""

import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dist_train import distributed, progress
from dist_train.corpus_memory import KeptIndex, LiveCorpusMemory, open_builder
from dist_train.data.collate import WindowBatch
from dist_train.data.windows import ForecastData
from dist_train.memory_build import LiveMemory
from dist_train.random_neighbours import draw_neighbours
from dist_train.worker import OrderedWorker
from memory_index.bank import MemoryBank
from memory_index.bank_union import BankUnion
from memory_index.config import BankConfig
from memory_index.exclusion import Exclusion
from model.batch import RetrievedWindows, from_rows, to_rows
from model.config import GramConfig
from model.instance_norm import VARIANCE_FLOOR
from model.neighbour_weights import softmax_weights
from model.pattern_encoder import AnchoredEncoder, DualEncoder


@dataclass(frozen=True, kw_only=True)
class Neighbours:
    """What a search found, nearest first."""

    ids: Tensor
    """Ids in the bank, -1 where there is none. Shape (R, K), int64, on the CPU."""

    weights: Tensor
    """softmax(-distance / temperature) with the searched keys, 0 where there is none. (R, K)."""

    distances: Tensor
    """Squared Euclidean distances of the searched keys, inf where there is none. (R, K)."""


class Retriever:
    """The memory of a run on one rank: bank, encoder snapshot and this rank's part of the index.

    The search uses the encoder as it was at the last :meth:`refresh`. Methods are collective,
    unless they say otherwise; every rank calls them in the same order.
    """

    def __init__(
        self,
        data: ForecastData,
        gram: GramConfig,
        bank: BankConfig,
        root: Path | None = None,
        *,
        off: Collection[str] = (),
        indexes: Mapping[str, KeptIndex] | None = None,
    ) -> None:
        """Choose the entries: training windows with their futures. :meth:`refresh` comes next.

        Args:
            data: The series.
            gram: Key, number of neighbours, temperature, and which sources neighbours come from.
            bank: Which windows become entries, and how they are searched.
            root: Folder of the banks where ``bank.path`` names none; None: one that goes away.
            off: Names of sources, of several, whose windows get no neighbours.
            indexes: How the banks of the sources are searched, where they are there already.

        Raises:
            DataError: The series of the only source overlap in time and share no clock, see
                :func:`dist_train.data.clock.check_clock`; or no source has entries.
        """
        self.data = data
        self.gram = gram
        self.off = tuple(off)
        self.builder = open_builder(data, gram, bank, root, off, indexes)
        self.bank: MemoryBank | BankUnion = self.builder.bank
        self.search_s = 0.0
        self._anchored = gram.retrieval_key == "anchored"
        self._device = distributed.device()
        self._live: LiveMemory | LiveCorpusMemory | None = None
        self._next: Future[LiveMemory | LiveCorpusMemory] | None = None
        self._searching = OrderedWorker("memory-search")
        self._building = OrderedWorker("memory-build")

    @property
    def needs_refresh(self) -> bool:
        """Whether the keys depend on trained parameters, and so grow stale."""
        return not self._anchored

    @property
    def live(self) -> LiveMemory | LiveCorpusMemory:
        """The memory that is searched now."""
        assert self._live is not None  # refresh() comes first
        return self._live

    @property
    def encoder(self) -> DualEncoder | AnchoredEncoder:
        """The encoder that the keys were made with."""
        return self.live.encoder

    @property
    def fingerprint(self) -> str:
        """Name of that encoder's state."""
        return self.live.fingerprint

    @property
    def shape_weight(self) -> float | None:
        """Share of the shape in the distance that is searched with; None: the keys are not learned.

        Not collective.
        """
        encoder = self.encoder
        if isinstance(encoder, AnchoredEncoder):
            return None
        return float(encoder.dual_key.shape_weight.detach().float().sigmoid())

    def snapshot(self) -> dict[str, Tensor]:
        """The encoder's state that the keys were made with. Not collective."""
        return {name: value.clone() for name, value in self.encoder.state_dict().items()}

    def refresh(self, state: Mapping[str, Tensor]) -> None:
        """Encode the bank anew, each rank its share, and search the new keys from now on.

        A bank of that state that was built before is loaded instead.

        Args:
            state: State of the current encoder, equal on every rank; empty for anchored keys.
        """
        self.start_refresh(state)
        self.finish_refresh()

    def start_refresh(self, state: Mapping[str, Tensor]) -> None:
        """Begin to encode the bank anew, beside the training; searches go on in the old one.

        Args:
            state: As :meth:`refresh`.
        """
        assert self._next is None, "one refresh at a time"
        copy = {name: value.clone() for name, value in state.items()}
        open_memory: Callable[..., LiveMemory | LiveCorpusMemory] = self.builder.open
        self._next = self._building.submit(open_memory, copy)

    def finish_refresh(self, *, swap: bool = True, or_keep: bool = False) -> bool:
        """Wait for the new keys and search them from now on, on every rank alike.

        Args:
            swap: False throws them away.
            or_keep: Where the disk was too full for them, say so and search the old ones.

        Returns:
            Whether they are searched now.
        """
        if self._next is None:
            return False
        building, self._next = self._next, None
        try:
            made = building.result()
        except Exception as error:
            if not (or_keep and self.builder.give_up_if_disk_is_full(error)):
                raise
            return False
        if swap:
            self._live = made
        return swap

    def prune(self, keep: set[str]) -> None:
        """Delete the banks of older states, except the live one and those named."""
        self.builder.prune({*keep, self.live.version})

    def close(self) -> None:
        """End the threads once they have done what they were given. Not collective."""
        self._searching.close()
        self._building.close()
        self.builder.close()

    def abandon(self) -> None:
        """End the threads, as :meth:`~dist_train.worker.OrderedWorker.abandon`. Not collective."""
        self._searching.abandon()
        self._building.abandon()
        self.builder.close()

    def search(
        self, context: Tensor, series: np.ndarray, starts: np.ndarray, *, past_only: bool
    ) -> Neighbours:
        """Find the neighbours of windows; never one that overlaps the window in time.

        Args:
            context: Standardised windows. Shape (B, L, N), float32; B may differ between ranks.
            series: Number of the series of each window. Shape (B,), int64.
            starts: First row of each window. Shape (B,), int64.
            past_only: Only entries whose futures end before the forecast begins.
        """
        return self._searching.submit(
            self._search, context, series, starts, past_only=past_only
        ).result()

    @torch.no_grad()
    def _search(
        self, context: Tensor, series: np.ndarray, starts: np.ndarray, *, past_only: bool
    ) -> Neighbours:
        began = time.monotonic()
        progress.enter("search")
        live, num_variates = self.live, context.shape[2]
        rows_RL = to_rows(context).to(self.builder.device)
        series_R, starts_R = (
            torch.from_numpy(np.repeat(part, num_variates)) for part in (series, starts)
        )
        # One range of ids to each query; with several sources one of each, hidden_RS2.
        hidden = self.bank.hidden(series_R, starts_R, self.exclusion(past_only=past_only))
        # A rank without a window searches too, but the encoder refuses a batch of nothing.
        keys_RZ = torch.empty(0, self.builder.width)
        if len(rows_RL):
            keys_RZ = live.encoder(rows_RL).key.float().cpu()
        if self.gram.neighbours == "random":
            variates_R = torch.arange(num_variates).repeat(len(starts))
            queries_R3 = torch.stack([series_R, starts_R, variates_R], dim=1)
            ids_RK = draw_neighbours(self.bank.ids, hidden, self.gram.top_k, queries_R3)
            distances_RK = self._distances(keys_RZ, ids_RK)
        else:
            distances_RK, ids_RK = live.index.search(keys_RZ, hidden, self.gram.top_k)
        weights_RK = softmax_weights(distances_RK, ids_RK >= 0, self.gram.temperature)
        self.search_s += time.monotonic() - began
        return Neighbours(ids=ids_RK, weights=weights_RK, distances=distances_RK)

    def _distances(self, keys: Tensor, ids: Tensor) -> Tensor:
        """Squared distances of queries and any entries. (R, Z), (R, K) -> (R, K), float32."""
        if not len(keys):
            return torch.empty(ids.shape)
        windows_RKL = self.bank.windows(ids).to(self.builder.device)
        entries_RKZ = self.live.encoder(windows_RKL).key.float().cpu()
        squared_RK: Tensor = (entries_RKZ - keys[:, None]).square().sum(dim=-1)
        return squared_RK

    def exclusion(self, *, past_only: bool) -> Exclusion:
        """What a query must not see. Not collective."""
        return Exclusion(
            seq_len=self.bank.seq_len, pred_len=self.bank.pred_len, past_only=past_only
        )

    def fetch(self, neighbours: Neighbours) -> RetrievedWindows:
        """Read what the model needs of the neighbours, onto this rank's device. Not collective."""
        ids = neighbours.ids
        return RetrievedWindows(
            windows=self.bank.windows(ids).to(self._device),
            futures=self.bank.futures(ids, anchored=self._anchored).to(self._device),
            ids=ids.to(self._device),
            valid=(ids >= 0).to(self._device),
            distances=neighbours.distances.masked_fill(ids < 0, 0).to(self._device),
        )

    def search_batch(self, batch: WindowBatch, split: str) -> Neighbours:
        """Find the neighbours of a batch of ``data.windows[split]``."""
        series, starts = self.data.windows[split].locate_batch(batch.window_ids.cpu().numpy())
        return self.search(batch.context, series, starts, past_only=not split.startswith("train"))

    def retrieve_ahead(self, batch: WindowBatch, split: str) -> "Future[RetrievedWindows]":
        """Find and read the neighbours of a batch of ``data.windows[split]`` in the background."""
        windows = self.data.windows[split]
        series, starts = windows.locate_batch(batch.window_ids.cpu().numpy())
        past_only = not split.startswith("train")

        def work() -> RetrievedWindows:
            return self.fetch(self._search(batch.context, series, starts, past_only=past_only))

        return self._searching.submit(work)

    def retrieve(self, batch: WindowBatch, split: str) -> RetrievedWindows:
        """Find and read the neighbours of a batch of ``data.windows[split]``."""
        return self.retrieve_ahead(batch, split).result()

    def forecast(self, batch: WindowBatch, split: str) -> Tensor:
        """Forecast by retrieval alone: the weighted mean of the neighbours' futures.

        Each future is put onto the window's own level and scale; a row without neighbours
        repeats its last value, as level.

        Returns:
            Shape (B, H, N), float32, standardised, on the CPU.
        """
        return self.forecast_from(batch, self.search_batch(batch, split))

    def forecast_from(self, batch: WindowBatch, neighbours: Neighbours) -> Tensor:
        """Forecast by retrieval alone, see :meth:`forecast`, from neighbours found before.

        Not collective.
        """
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
