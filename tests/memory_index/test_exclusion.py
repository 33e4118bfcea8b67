"""memory_index/exclusion.py: the mask against sets of time steps, one by one."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from memory_index.exclusion import Exclusion

STARTS = st.integers(0, 60)


def may_see(rule: Exclusion, same_series: bool, query_start: int, entry_start: int) -> bool:
    """SPEC's two sentences, said with sets of time steps."""
    if not same_series:
        return True
    span = rule.seq_len + rule.pred_len
    query = set(range(query_start, query_start + span))
    entry = set(range(entry_start, entry_start + span))
    forecast_start = query_start + rule.seq_len
    ends_before_forecast = max(entry) < forecast_start
    return not (query & entry) and (ends_before_forecast or not rule.past_only)


@settings(deadline=None)
@given(
    seq_len=st.integers(1, 12),
    pred_len=st.integers(1, 12),
    past_only=st.booleans(),
    queries=st.lists(st.tuples(st.integers(0, 1), STARTS), min_size=1, max_size=4),
    entries=st.lists(st.tuples(st.integers(0, 1), STARTS), max_size=12),
)
def test_the_mask_equals_the_rule_said_with_sets(
    seq_len: int,
    pred_len: int,
    past_only: bool,
    queries: list[tuple[int, int]],
    entries: list[tuple[int, int]],
):
    rule = Exclusion(seq_len=seq_len, pred_len=pred_len, past_only=past_only)
    query_pairs = torch.tensor(queries).reshape(-1, 2)
    entry_pairs = torch.tensor(entries, dtype=torch.int64).reshape(-1, 2)

    visible = rule.visible(*query_pairs.T, *entry_pairs.T)

    expected = [
        [may_see(rule, series == other, start, entry) for other, entry in entries]
        for series, start in queries
    ]
    assert visible.tolist() == expected


@pytest.mark.parametrize("past_only", [False, True])
def test_the_nearest_visible_entry_ends_where_the_query_begins(past_only: bool):
    rule = Exclusion(seq_len=8, pred_len=4, past_only=past_only)
    zeros = torch.zeros(4, dtype=torch.int64)
    entry_starts = torch.tensor([100 - 12, 100 - 11, 100 + 11, 100 + 12])
    visible = rule.visible(zeros[:1], torch.tensor([100]), zeros, entry_starts)
    assert visible.tolist() == [[True, False, False, not past_only]]


def test_refuses_starts_without_series():
    zeros = torch.zeros(3, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"one series and one start, got shapes \(3,\) and \(2,\)"):
        Exclusion(seq_len=8, pred_len=4, past_only=True).visible(zeros, zeros[:2], zeros, zeros)
