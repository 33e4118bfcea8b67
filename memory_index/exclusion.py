"""What a query must not see: entries that hold its own future, or a later one.

Starts are rows of one series, counted from its first row whatever the split, so they compare as
time does. Entries under *another* series number are always visible: whoever numbers the series
gives one number, and starts on one clock, to all those that share time.

Shape legend (this file):
    Q  queries     M  entries
"""

from dataclasses import dataclass

import torch
from torch import Tensor

# Above every start; ends the hidden range of a query that may only see the past.
FOREVER = torch.iinfo(torch.int64).max


@dataclass(frozen=True, kw_only=True, slots=True)
class Exclusion:
    """The rule for one split. Ranges of starts, so that every kind of index can apply it.

    Source: SPEC 1.2, paragraph "Never see the answer"; EVIDENCE 3.
    """

    seq_len: int
    """L, in time steps."""

    pred_len: int
    """H, in time steps."""

    past_only: bool
    """False in training; True on validation and test, which see nothing of their own time on."""

    def hidden_range(self, query_starts: Tensor) -> tuple[Tensor, Tensor]:
        """Range of starts that each query must not see, in every variate of its own series.

        An entry covers [start, start + L + H). Overlapping the query's own range is refused
        always, hence less than L + H apart. With ``past_only`` later entries are hidden too:
        those that end before the forecast starts and do not overlap end before the query does.

        Args:
            query_starts: First row of each query's window. Shape (Q,), int64.

        Returns:
            ``(first, end)``, hidden is ``first <= start < end``. Shape (Q,) each, int64.
        """
        span = self.seq_len + self.pred_len
        end = query_starts + span
        return query_starts - span + 1, torch.full_like(end, FOREVER) if self.past_only else end

    def visible(
        self,
        query_series: Tensor,
        query_starts: Tensor,
        entry_series: Tensor,
        entry_starts: Tensor,
    ) -> Tensor:
        """Say which entries each query may see; the variate never matters.

        Args:
            query_series: Index of each query's series. Shape (Q,), int64.
            query_starts: First row of each query's window. Shape (Q,), int64.
            entry_series: Index of each entry's series. Shape (M,), int64.
            entry_starts: First row of each entry's window. Shape (M,), int64.

        Returns:
            True where visible. Shape (Q, M), bool.

        Raises:
            ValueError: Series and starts of one side differ in shape.
        """
        if query_series.shape != query_starts.shape or entry_series.shape != entry_starts.shape:
            raise ValueError(
                "each query and each entry needs one series and one start, got shapes "
                f"{tuple(query_series.shape)} and {tuple(query_starts.shape)} of queries, "
                f"{tuple(entry_series.shape)} and {tuple(entry_starts.shape)} of entries."
            )
        first_Q, end_Q = self.hidden_range(query_starts)
        hidden_QM = (entry_starts >= first_Q[:, None]) & (entry_starts < end_Q[:, None])
        return ~(hidden_QM & (entry_series == query_series[:, None]))
