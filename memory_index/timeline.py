"""When the rows of a source are: what a window of one source hides in the bank of another.

Sources differ in frequency, so their rows cannot be compared; their time stamps can. A row lasts
from its own stamp to the next one. Where stamps are not in order, a window lasts from the earliest
stamp at or after its first row to the latest one up to the row after its last: never too short.

Free of torch.

Shape legend (this file):
    T  rows of the clock     S  series     Q  queries
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

LONG_AGO, FAR = np.iinfo(np.int64).min, 2**62
"""Before and after all time stamps, in nanoseconds since 1970."""


class Timeline:
    """The clock that all series of one source share, in absolute time."""

    def __init__(
        self,
        stretches: Sequence[Ints],
        following: Sequence[int],
        stretch_of_series: Ints,
        offsets: Ints,
    ) -> None:
        """Lay runs of rows end to end; none begins before the one before it has ended.

        Args:
            stretches: Time stamps of each run of rows, nanoseconds since 1970; copied only where
                they have to be.
            following: The stamp that comes after the last row of each.
            stretch_of_series: Number of the run that each series lies in. Shape (S,).
            offsets: Row of the clock that each series begins at. Shape (S,).
        """
        self._stretch_of_series, self._offsets = stretch_of_series, offsets
        self._following = np.array(following, dtype=np.int64)
        rows = np.array([len(stamps) for stamps in stretches], dtype=np.int64)
        self._end_rows = np.cumsum(rows)
        self._first_rows = self._end_rows - rows
        stamps_T = stretches[0] if len(stretches) == 1 else np.concatenate(stretches)
        steps = []
        for stamps, after in zip(stretches, following, strict=True):
            taken = np.diff(stamps, append=after)
            taken = taken[taken > 0]
            steps.append((int(taken.min()), int(taken.max())) if len(taken) else (1, 1))
        self._shortest, self._longest = np.array(steps, dtype=np.int64).T
        if len(stretches) == 1 and bool((np.diff(stamps_T) > 0).all()):
            self._begins, self._ends = stamps_T, stamps_T[1:]
            self._last_end = max(int(following[0]), int(stamps_T[-1]) + 1)
        else:
            after_T = np.concatenate(
                [np.append(s[1:], after) for s, after in zip(stretches, following, strict=True)]
            )
            lasts_T = np.repeat(self._shortest, rows)
            # A row lasts a step at least, also where the next one has the same stamp.
            ends_T = np.maximum.accumulate(np.maximum(after_T, stamps_T + lasts_T))
            self._begins = np.minimum.accumulate(stamps_T[::-1])[::-1]
            self._ends, self._last_end = ends_T[:-1], int(ends_T[-1])

    def __len__(self) -> int:
        return len(self._begins)

    def lasting(self, series: Ints, starts: Ints, span: int) -> tuple[Ints, Ints]:
        """Say from when to when windows last, beyond the end of their series too.

        Args:
            series: Number of each window's series in the source. Shape (...).
            starts: Its first row in that series; may lie outside of it. Shape (...).
            span: Rows of a window, its future among them.

        Returns:
            Begin and end, the end exclusive, in nanoseconds since 1970. Shape (...) each.
        """
        stretch = self._stretch_of_series[series]
        first, end = self._first_rows[stretch], self._end_rows[stretch]
        rows = self._offsets[series] + starts
        last = np.maximum(rows + span - 1, first)
        # Unknown rows come as soon as they can, or as late: a window is never too short.
        begin = np.where(
            rows < end,
            self._begins[np.clip(rows, first, end - 1)],
            _later(self._following[stretch], rows - end, self._shortest[stretch]),
        )
        until = np.where(
            last < end,
            self._end_of(np.clip(last, first, end - 1)),
            _later(self._end_of(end - 1), last - end + 1, self._longest[stretch]),
        )
        return np.where(rows < first, LONG_AGO, begin), until

    def hidden_rows(
        self, begins: Ints, ends: Ints, span: int, *, past_only: bool
    ) -> tuple[Ints, Ints]:
        """First rows of the windows of this source that queries of any source must not see.

        Args:
            begins: When each query begins. Shape (Q,).
            ends: When it ends, exclusive. Shape (Q,).
            span: Rows of a window, its future among them.
            past_only: Later windows are hidden too, as
                :class:`~memory_index.exclusion.Exclusion` has it.

        Returns:
            Hidden is ``first <= row < end``. Shape (Q,) each.
        """
        if span < 1:
            return np.zeros_like(begins), np.zeros_like(ends)
        passed = np.searchsorted(self._ends[span - 1 :], begins, side="right")
        first = np.minimum(passed + (self._last_end <= begins), len(self))
        end = np.full_like(first, len(self))
        if not past_only:
            end = np.searchsorted(self._begins, ends, side="left")
        return first.astype(np.int64), np.maximum(first, end).astype(np.int64)

    def _end_of(self, rows: Ints) -> Ints:
        if not len(self._ends):
            return np.full_like(rows, self._last_end)
        inside = np.minimum(rows, len(self._ends) - 1)
        return np.where(rows < len(self._ends), self._ends[inside], self._last_end)


def _later(times: Ints, steps: Ints, step: Ints) -> Ints:
    """Go on by steps, no farther than :data:`FAR`."""
    return times + np.clip(steps, 0, (FAR - times) // step) * step
