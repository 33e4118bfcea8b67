"""What a query must not see: entries that hold its own future, or a later one.

Ranges of positions in time, so that every kind of index can apply them: as rows of a clock here,
as ranges of time-major ids in the searches.

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
    """The rule for one split.

    Source: SPEC 1.2, paragraph "Never see the answer"; EVIDENCE 3.
    """

    seq_len: int
    """L, in time steps."""

    pred_len: int
    """H, in time steps."""

    past_only: bool
    """False in training; True on validation and test, which see nothing of their own time on."""

    def hidden_range(self, query_starts: Tensor) -> Tensor:
        """Range of starts that each query must not see, in every variate on its clock.

        An entry covers [start, start + L + H). Overlapping the query's own range is refused
        always, hence less than L + H apart. With ``past_only`` later entries are hidden too:
        those that end before the forecast starts and do not overlap end before the query does.

        Args:
            query_starts: First row of each query's window. Shape (...), int64.

        Returns:
            Hidden is ``first <= start < end``. Shape (..., 2), int64.
        """
        span = self.seq_len + self.pred_len
        end = query_starts + span
        if self.past_only:
            end = torch.full_like(end, FOREVER)
        return torch.stack([query_starts - span + 1, end], dim=-1)


def visible(hidden: Tensor, positions: Tensor) -> Tensor:
    """Say which entries each query may see.

    Args:
        hidden: Hidden range [first, end) of each query. Shape (Q, 2), int64.
        positions: Where the entries lie: ids, or starts, as the ranges are. Shape (M,), int64.

    Returns:
        True where visible. Shape (Q, M), bool.
    """
    return (positions < hidden[:, :1]) | (positions >= hidden[:, 1:])
