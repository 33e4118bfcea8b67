"""The banks of several sources as one: ids laid end to end, exclusion by absolute time.

Each source keeps a bank of its own, time-major as the searches need it: what a query must not see
of it is one range of ids, whichever source the query is of.

Shape legend (this file):
    S  sources     Q  queries     K  neighbours of a query
    L  seq_len     H  pred_len    ...  any shape of ids
"""

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from memory_index.bank import MemoryBank
from memory_index.exclusion import Exclusion
from memory_index.timeline import FAR, LONG_AGO, Timeline


class BankUnion:
    """Stands where a :class:`MemoryBank` does; series and ids are numbered source after source.

    Attributes:
        banks: One per source, some without entries.
        first_ids: Id that each source's begin at, and the first that is none. Shape (S + 1,).
        num_candidates: Entries before sampling.
        seq_len: L, in time steps of each source.
        pred_len: H, in time steps of each source.
    """

    def __init__(
        self, banks: Sequence[MemoryBank], timelines: Sequence[Timeline | None], sees: Tensor
    ) -> None:
        """Lay the banks end to end.

        Args:
            banks: Of the sources; the series of each share one clock.
            timelines: When the rows of these clocks are; None: they share none, so that source
                has no entry, and its queries get nothing.
            sees: Whether queries of a source (row) get entries of another one (column). Shape
                (S, S), bool.
        """
        assert len(banks) == len(timelines) == len(sees) > 1
        self.banks, self._timelines, self._sees = tuple(banks), tuple(timelines), sees
        self.first_ids = _ends([bank.end_of_ids for bank in banks])
        self._first_series = _ends([bank.num_series for bank in banks])
        self.num_candidates = sum(bank.num_candidates for bank in banks)
        self.seq_len, self.pred_len = banks[0].seq_len, banks[0].pred_len

    def __len__(self) -> int:
        return sum(len(bank) for bank in self.banks)

    @cached_property
    def ids(self) -> Tensor:
        """Ids of the entries, ascending. Shape (M,), int64."""
        parts = [
            bank.ids + first for bank, first in zip(self.banks, self.first_ids[:-1], strict=True)
        ]
        return torch.cat(parts)

    @property
    def end_of_time(self) -> int:
        """First row of a window that comes after all there are, in any source."""
        return FAR

    def sources(self, ids: Tensor) -> Tensor:
        """Number of the source of each id, -1 where the id is. Shape (...), int64."""
        found = torch.searchsorted(self.first_ids, ids.contiguous(), right=True) - 1
        return found.where(ids >= 0, -1)

    def places(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As :meth:`MemoryBank.places`: series, first row, column. Shape (...) each, int64."""
        flat = ids.flatten()
        found = torch.full((3, len(flat)), -1, dtype=torch.int64)
        for source, where, local in self._by_source(flat):
            found[:, where] = torch.stack(self.banks[source].places(local))
            found[0, where] += self._first_series[source]
        series, starts, columns = found.reshape(3, *ids.shape)
        return series, starts, columns

    def series(self, ids: Tensor) -> Tensor:
        """As :meth:`MemoryBank.series`. Shape (...), int64."""
        return self.places(ids)[0]

    def starts(self, ids: Tensor) -> Tensor:
        """As :meth:`MemoryBank.starts`. Shape (...), int64."""
        return self.places(ids)[1]

    def hidden(self, series: Tensor, starts: Tensor, exclusion: Exclusion) -> Tensor:
        """Ids that queries must not see: what shares their time, and sources out of their scope.

        Args:
            series: Index of each query's series. Shape (Q,), int64.
            starts: First row of each query's window in its series. Shape (Q,), int64.
            exclusion: The rule; as many rows of every source make a window.

        Returns:
            Of source s hidden is ``first <= id < end`` of ``[:, s]``. Shape (Q, S, 2), int64.
        """
        span = exclusion.seq_len + exclusion.pred_len
        begins_Q, ends_Q = self._lasting(series, starts, span)
        ranges = []
        for number, (bank, timeline) in enumerate(zip(self.banks, self._timelines, strict=True)):
            if timeline is None:
                ranges.append(self.first_ids[number : number + 2].expand(len(series), -1))
                continue
            rows = timeline.hidden_rows(begins_Q, ends_Q, span, past_only=exclusion.past_only)
            ids_Q2 = bank.ids_in_rows(torch.from_numpy(np.stack(rows, axis=1)))
            ranges.append(ids_Q2 + self.first_ids[number])
        hidden_QS2 = torch.stack(ranges, dim=1)
        whole_S2 = torch.stack([self.first_ids[:-1], self.first_ids[1:]], dim=1)
        return hidden_QS2.where(self._sees[self._source_of(series)][..., None], whole_S2)

    def overlaps(self, series: Tensor, starts: Tensor, ids: Tensor) -> Tensor:
        """As :meth:`MemoryBank.overlaps`, by time stamps. Shape (Q, K), bool."""
        span = self.seq_len + self.pred_len
        begins_Q, ends_Q = self._lasting(series, starts, span)
        found_series, found_starts, _ = self.places(ids.clamp_min(0))
        begins_QK, ends_QK = self._lasting(found_series, found_starts, span)
        shared = (begins_QK < ends_Q[:, None]) & (ends_QK > begins_Q[:, None])
        return torch.from_numpy(shared) & (ids >= 0)

    def windows(self, ids: Tensor) -> Tensor:
        """As :meth:`MemoryBank.windows`. Shape (..., L), float32."""
        return self._read(ids, self.seq_len, lambda bank, local: bank.windows(local))

    def futures(self, ids: Tensor, *, anchored: bool = False) -> Tensor:
        """As :meth:`MemoryBank.futures`. Shape (..., H), float32."""
        return self._read(
            ids, self.pred_len, lambda bank, local: bank.futures(local, anchored=anchored)
        )

    def _read(
        self, ids: Tensor, width: int, read: Callable[[MemoryBank, Tensor], Tensor]
    ) -> Tensor:
        flat = ids.flatten()
        values = torch.zeros(len(flat), width)
        for source, where, local in self._by_source(flat):
            values[where] = read(self.banks[source], local)
        return values.reshape(*ids.shape, width)

    def _by_source(self, ids: Tensor) -> list[tuple[int, Tensor, Tensor]]:
        """Sources that are named: number, which of the ids are its own, and these in its bank."""
        if len(ids) and int(ids.max()) >= int(self.first_ids[-1]):
            raise ValueError(
                f"id {int(ids.max())} is beyond the {int(self.first_ids[-1])} values of all "
                "sources: it belongs to another bank."
            )
        sources = self.sources(ids)
        named = [number for number in torch.unique(sources).tolist() if number >= 0]
        places = [(number, sources == number) for number in named]
        return [(number, where, ids[where] - self.first_ids[number]) for number, where in places]

    def _source_of(self, series: Tensor) -> Tensor:
        """Number of the source of each series. Shape (...), int64."""
        return torch.searchsorted(self._first_series, series.contiguous(), right=True) - 1

    def _lasting(self, series: Tensor, starts: Tensor, span: int) -> tuple[np.ndarray, np.ndarray]:
        """When windows begin and end, see :meth:`Timeline.lasting`. Shape (...) each."""
        sources = self._source_of(series)
        begins, ends = np.zeros((2, *series.shape), dtype=np.int64)
        for number in torch.unique(sources).tolist():
            where = (sources == number).numpy()
            local = (series - self._first_series[number]).numpy()[where]
            timeline = self._timelines[number]
            if timeline is None:
                begins[where], ends[where] = LONG_AGO, FAR
                continue
            begins[where], ends[where] = timeline.lasting(local, starts.numpy()[where], span)
        return begins, ends


def _ends(counts: Sequence[int]) -> Tensor:
    return torch.tensor([0, *counts]).cumsum(0)
