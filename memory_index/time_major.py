"""Numbers for windows: time first, so that one range of numbers is one range of time.

``id = first id of the clock + (row on the clock) * C + channel``, where C counts the variates of
all series on that clock. Everything that overlaps a window in time, in any variate of any of these
series, then lies between two ids. Series without a common clock have one each.

An id depends on the series alone, not on which windows became entries: a bank with another stride
or sample names the same window by the same id.

Shape legend (this file):
    S  series     T  rows of a series     N  its variates     C  channels of a clock
    ...  any shape of ids
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from memory_index.exclusion import Exclusion


class TimeMajorIds:
    """From (series, first row, variate) to an id, and back."""

    def __init__(
        self, shapes: Sequence[tuple[int, int]], clock_offsets: Sequence[int] | None = None
    ) -> None:
        """Lay out the ids.

        Args:
            shapes: (T, N) of each series.
            clock_offsets: Rows from the clock's first to that of each series; None where the
                series share no clock.

        Raises:
            ValueError: Not one offset per series.
        """
        if clock_offsets is not None and len(clock_offsets) != len(shapes):
            raise ValueError(
                f"the bank got {len(shapes)} series and {len(clock_offsets)} clock offsets: "
                "pass one offset for each."
            )
        shared = clock_offsets is not None
        offsets = [0] * len(shapes) if clock_offsets is None else list(clock_offsets)
        clocks = [list(range(len(shapes)))] if shared else [[one] for one in range(len(shapes))]
        rows = [max(offsets[s] + shapes[s][0] for s in members) for members in clocks]
        channels = [sum(shapes[s][1] for s in members) for members in clocks]
        sizes = torch.tensor([r * c for r, c in zip(rows, channels, strict=True)])
        order = [s for members in clocks for s in members]  # series in the order of their channels
        variates = torch.tensor([shapes[s][1] for s in order])
        self._clock_S = torch.tensor([g for g, members in enumerate(clocks) for _ in members])
        self._offset_S = torch.tensor(offsets)
        self._rows_G, self._channels_G = torch.tensor(rows), torch.tensor(channels)
        self._end_G = sizes.cumsum(0)
        self._first_G = self._end_G - sizes
        # Channels of all clocks laid end to end, and which series each belongs to.
        self._series_of_channel = torch.tensor(order).repeat_interleave(variates)
        first_channel = variates.cumsum(0) - variates
        self._first_channel_G = self._channels_G.cumsum(0) - self._channels_G
        self._column_S = first_channel - self._first_channel_G[self._clock_S]

    @property
    def end(self) -> int:
        """The first number that is no id."""
        return int(self._end_G[-1])

    def ids(self, series: Tensor, starts: Tensor, variates: Tensor) -> Tensor:
        """Number windows. Shape (...), int64, of all three; broadcast."""
        clock = self._clock_S[series]
        rows = self._offset_S[series] + starts
        columns = self._column_S[series] + variates
        return self._first_G[clock] + rows * self._channels_G[clock] + columns

    def locate(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Series, first row in it, and variate of each id; -1 each where the id is -1.

        Args:
            ids: Ids below :attr:`end`, -1 for none. Shape (...), int64, on the CPU.
        """
        clock = torch.searchsorted(self._end_G, ids.clamp_min(0).contiguous(), right=True)
        local = ids - self._first_G[clock]
        rows, channel = local // self._channels_G[clock], local % self._channels_G[clock]
        series = self._series_of_channel[self._first_channel_G[clock] + channel]
        places = (series, rows - self._offset_S[series], channel - self._column_S[series])
        return (
            places[0].where(ids >= 0, -1),
            places[1].where(ids >= 0, -1),
            places[2].where(ids >= 0, -1),
        )

    def from_row(self, rows: Tensor) -> Tensor:
        """First id at or after rows of the one clock that all series share. (...) -> (...)."""
        assert len(self._rows_G) == 1
        return rows.clamp(0, int(self._rows_G[0])) * self._channels_G[0]

    def on_clock(self, series: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
        """Say where windows lie in time: number of the clock, and first row on it. (...) each."""
        return self._clock_S[series], self._offset_S[series] + starts

    def hidden(self, series: Tensor, starts: Tensor, exclusion: Exclusion) -> Tensor:
        """Range of ids that queries must not see, in every series of their clock.

        Args:
            series: Index of each query's series. Shape (...), int64.
            starts: First row of its window in that series; may lie beyond its end. (...), int64.
            exclusion: The rule.

        Returns:
            Hidden is ``first <= id < end``. Shape (..., 2), int64.
        """
        clock = self._clock_S[series]
        rows = self._rows_G[clock]
        limits = exclusion.hidden_range(self._offset_S[series] + starts)
        limits = torch.minimum(limits.clamp_min(0), rows[..., None])
        return self._first_G[clock][..., None] + limits * self._channels_G[clock][..., None]
