"""The memory bank: entries as references into series, values by id.

Shape legend (this file):
    M  entries of the bank     L  seq_len       T  rows of a series
    ...  any shape of ids      H  pred_len      N  variates of a series
    S  steps that are read of a window and its future
"""

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch import Tensor

from memory_index.config import BankConfig
from memory_index.exclusion import Exclusion
from memory_index.time_major import TimeMajorIds

# The floor of the forecaster's own instance norm: both must scale a window alike.
VARIANCE_FLOOR = 1e-5

READ_AT_ONCE = 1024
"""Futures that are normalised at a time: what lies between stays in the cache of a core."""


class MemoryBank:
    """References to training windows. Copies no series; reads memory-mapped arrays as they are.

    Attributes:
        ids: Ids of the entries, ascending. Shape (M,), int64.
        num_candidates: Entries before sampling; more than ``len(bank)`` where it was sampled.
        seq_len: L, in time steps.
        pred_len: H, in time steps.
        clock_offsets: As given: where each series begins on a clock that all share.
    """

    def __init__(
        self,
        series: Sequence[NDArray[np.floating] | Tensor],
        train_rows: Sequence[tuple[int, int]],
        seq_len: int,
        pred_len: int,
        config: BankConfig,
        clock_offsets: Sequence[int] | None = None,
    ) -> None:
        """Choose the entries.

        Args:
            series: Standardised series, each of shape (T, N); N may differ between them.
            train_rows: Rows [first, end) of each series' training split. An entry lies inside
                with its future.
            seq_len: L, in time steps.
            pred_len: H, in time steps.
            config: Stride and size.
            clock_offsets: Rows between the start of a clock that all series share and that of
                each of them; None where there is none.

        Raises:
            ValueError: A series is not (T, N), or a training range does not lie inside it.
        """
        self.seq_len = seq_len
        self.pred_len = pred_len
        self.clock_offsets = clock_offsets
        self._arrays = [np.asarray(array) for array in series]
        _check_ranges(self._arrays, train_rows)
        shapes = [(len(array), array.shape[1]) for array in self._arrays]
        self._places = TimeMajorIds(shapes, clock_offsets)
        starts = [self._entry_starts(rows, config.bank_stride) for rows in train_rows]
        counts = [len(s) * array.shape[1] for s, array in zip(starts, self._arrays, strict=True)]
        self.num_candidates = sum(counts)
        shares = even_shares(counts, config.limit)
        parts = [self._sample(index, starts[index], shares[index]) for index in range(len(shapes))]
        ids = torch.cat([torch.empty(0, dtype=torch.int64), *parts])
        self.ids = ids if len(parts) == 1 else ids.sort().values

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def num_series(self) -> int:
        """Series that the entries are of."""
        return len(self._arrays)

    def places(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Say what each id is of; -1 in all three where the id is.

        Args:
            ids: Ids, -1 for none. Shape (...), int64, on the CPU.

        Returns:
            Index of the series, first row of the window in it, and column. Shape (...) each, int64.
        """
        return self._places.locate(ids)

    def series(self, ids: Tensor) -> Tensor:
        """Index of the series of each id, -1 where the id is. Shape (...), int64."""
        return self._places.locate(ids)[0]

    def starts(self, ids: Tensor) -> Tensor:
        """First row of each id's window in its series, -1 where the id is. Shape (...), int64."""
        return self._places.locate(ids)[1]

    def hidden(self, series: Tensor, starts: Tensor, exclusion: Exclusion) -> Tensor:
        """Ids that queries must not see, whatever the variate and whichever series shares time.

        Args:
            series: Index of each query's series. Shape (Q,), int64.
            starts: First row of each query's window in its series. Shape (Q,), int64.
            exclusion: The rule.

        Returns:
            Hidden is ``first <= id < end``. Shape (Q, 2), int64.
        """
        return self._places.hidden(series, starts, exclusion)

    def ids_in_rows(self, rows: Tensor) -> Tensor:
        """Ids of all windows that begin in a range of rows, of the clock that all series share.

        Args:
            rows: First row and the one after the last. Shape (..., 2), int64.

        Returns:
            These are ``first <= id < end``. Shape (..., 2), int64.
        """
        return self._places.from_row(rows)

    def on_clock(self, series: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
        """Say where windows lie in time: number of the clock, and first row on it.

        What happened at the same time elsewhere gives the answer away too, so series with a clock
        in common are one to the exclusion, as the variates of a wide file are.

        Args:
            series: Index of the series of each window. Shape (...), int64.
            starts: First row of each window in its series. Shape (...), int64.
        """
        return self._places.on_clock(series, starts)

    def overlaps(self, series: Tensor, starts: Tensor, ids: Tensor) -> Tensor:
        """Say which windows share time with a query; compares rows, asks no exclusion.

        Args:
            series: Index of each query's series. Shape (Q,), int64.
            starts: First row of each query's window in its series. Shape (Q,), int64.
            ids: Windows to compare each query with, -1 for none. Shape (Q, K), int64.

        Returns:
            True where they do, by a step of the future at least. Shape (Q, K), bool.
        """
        clocks_Q, rows_Q = self.on_clock(series, starts)
        clocks_QK, rows_QK = self.on_clock(self.series(ids), self.starts(ids))
        near_QK = (rows_QK - rows_Q[:, None]).abs() < self.seq_len + self.pred_len
        shared_QK: Tensor = near_QK & (clocks_QK == clocks_Q[:, None]) & (ids >= 0)
        return shared_QK

    @property
    def end_of_ids(self) -> int:
        """The first number that is no id of any window of the series."""
        return self._places.end

    @property
    def end_of_time(self) -> int:
        """First row of a window that comes after all there are, in any series."""
        return self._places.end + self.seq_len + self.pred_len

    def windows(self, ids: Tensor) -> Tensor:
        """Read the contexts, standardised as the series are.

        Args:
            ids: Ids, -1 for none; not only those of the bank. Shape (...), int64, on the CPU.

        Returns:
            Contexts, oldest step first; zeros where there is none. Shape (..., L), float32.

        Raises:
            ValueError: An id names no window of the series.
        """
        return self._values(ids, self.seq_len)

    def futures(self, ids: Tensor, *, anchored: bool = False) -> Tensor:
        """Read the futures, normalised by their own windows.

        Args:
            ids: Ids, -1 for none; not only those of the bank. Shape (...), int64, on the CPU.
            anchored: Subtract the window's last value instead of its mean.

        Returns:
            (future - loc) / scale, oldest step first; zeros where there is none. Shape (..., H),
            float32.

        Raises:
            ValueError: An id names no window of the series.
        """
        parts = torch.split(ids.flatten(), READ_AT_ONCE)
        futures = torch.cat([self._normalised_futures(part, anchored) for part in parts])
        return futures.reshape(*ids.shape, self.pred_len)

    def _normalised_futures(self, ids: Tensor, anchored: bool) -> Tensor:
        """See :meth:`futures`. (M,) -> (M, H)."""
        values = self._values(ids, self.seq_len + self.pred_len)
        context, future = values[..., : self.seq_len], values[..., self.seq_len :]
        mean = context.mean(dim=-1, keepdim=True)
        # From the centred values, as the forecaster's norm does: a constant window has no residue.
        scale = ((context - mean).square_().mean(dim=-1, keepdim=True) + VARIANCE_FLOOR).sqrt()
        loc = context[..., -1:] if anchored else mean
        futures: Tensor = (future - loc) / scale
        return futures

    def _entry_starts(self, rows: tuple[int, int], stride: int) -> Tensor:
        """Starts whose window and future lie inside ``rows``; none where these are too few."""
        first, end = rows
        last = end - self.seq_len - self.pred_len
        return torch.arange(first, max(first, last + 1), stride, dtype=torch.int64)

    def _sample(self, index: int, starts: Tensor, size: int) -> Tensor:
        """Take ``size`` entries of one series, even over time and variates; ids ascend.

        Entry i takes the start i / size of the way along and variate i mod N. A plain stride over
        ids would meet one variate only whenever it is a multiple of N.
        """
        num_variates = self._arrays[index].shape[1]
        series = torch.tensor(index)
        if size == len(starts) * num_variates:
            return self._places.ids(series, starts[:, None], torch.arange(num_variates)).flatten()
        order = torch.arange(size)
        chosen = starts[order * len(starts) // max(1, size)]
        return self._places.ids(series, chosen, order % num_variates).sort().values

    def _values(self, ids: Tensor, steps: int) -> Tensor:
        """The first steps of context and future in one read. (...) -> (..., steps), float32."""
        flat = ids.flatten()
        span = self.seq_len + self.pred_len
        values = np.zeros((len(flat), steps), dtype=np.float32)
        if len(flat) and int(flat.max()) >= self._places.end:
            raise ValueError(
                f"id {int(flat.max())} is beyond the {self._places.end} values of the "
                "series: it belongs to another bank."
            )
        series, starts, variates = (place.numpy() for place in self._places.locate(flat))
        for index in np.unique(series[series >= 0]):
            array, where = self._arrays[index], np.flatnonzero(series == index)
            first, last = int(starts[where].min()), int(starts[where].max())
            if first < 0 or last + span > len(array):
                wrong = first if first < 0 else last
                raise ValueError(
                    f"id {int(flat[where][starts[where] == wrong][0])} starts at row "
                    f"{wrong} of series {index}, which has {len(array)} rows: "
                    f"its window and future need {span}."
                )
            # A view whose entries are whole rows of the answer: one copy each, not one per value.
            every_TNS = sliding_window_view(array, steps, axis=0)
            values[where] = every_TNS[starts[where], variates[where]]
        return torch.from_numpy(values).reshape(*ids.shape, steps)


def _check_ranges(
    arrays: list[NDArray[np.floating]], train_rows: Sequence[tuple[int, int]]
) -> None:
    if not arrays or len(arrays) != len(train_rows):
        raise ValueError(
            f"the bank got {len(arrays)} series and {len(train_rows)} training ranges: "
            "pass at least one series, and one range for each."
        )
    for index, (array, (first, end)) in enumerate(zip(arrays, train_rows, strict=True)):
        if array.ndim != 2:
            raise ValueError(f"series {index} must be (T, N), got shape {array.shape}.")
        if not 0 <= first <= end <= len(array):
            raise ValueError(
                f"training rows [{first}, {end}) do not lie inside series {index}, which has "
                f"{len(array)} rows: pass its own split."
            )


def even_shares(counts: list[int], limit: int | None) -> list[int]:
    """Split ``limit`` in proportion to numbers of entries; all of them without."""
    total = sum(counts)
    if limit is None or limit >= total:
        return counts
    ends = [end * limit // total for end in accumulate(counts)]
    return [end - before for end, before in zip(ends, [0, *ends], strict=False)]
