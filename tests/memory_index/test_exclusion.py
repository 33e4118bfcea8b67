"""memory_index/exclusion.py: the hidden range against sets of time steps, one by one."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from memory_index.exclusion import Exclusion, visible

STARTS = st.integers(0, 60)


def may_see(rule: Exclusion, query_start: int, entry_start: int) -> bool:
    """SPEC's two sentences, said with sets of time steps."""
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
    queries=st.lists(STARTS, min_size=1, max_size=4),
    entries=st.lists(STARTS, max_size=12),
)
def test_the_mask_equals_the_rule_said_with_sets(
    seq_len: int, pred_len: int, past_only: bool, queries: list[int], entries: list[int]
):
    rule = Exclusion(seq_len=seq_len, pred_len=pred_len, past_only=past_only)
    hidden = rule.hidden_range(torch.tensor(queries))
    seen = visible(hidden, torch.tensor(entries, dtype=torch.int64))
    assert seen.tolist() == [
        [may_see(rule, start, entry) for entry in entries] for start in queries
    ]


@pytest.mark.parametrize("past_only", [False, True])
def test_the_nearest_visible_entry_ends_where_the_query_begins(past_only: bool):
    rule = Exclusion(seq_len=8, pred_len=4, past_only=past_only)
    entry_starts = torch.tensor([100 - 12, 100 - 11, 100 + 11, 100 + 12])
    seen = visible(rule.hidden_range(torch.tensor([100])), entry_starts)
    assert seen.tolist() == [[True, False, False, not past_only]]


def test_a_past_only_query_sees_no_later_start_however_late():
    rule = Exclusion(seq_len=8, pred_len=4, past_only=True)
    latest = torch.tensor([torch.iinfo(torch.int64).max - 1])
    assert visible(rule.hidden_range(torch.tensor([0])), latest).tolist() == [[False]]


def test_ranges_keep_the_leading_shape_of_the_starts():
    rule = Exclusion(seq_len=2, pred_len=1, past_only=False)
    ranges = rule.hidden_range(torch.tensor([[10, 20], [30, 40]]))
    assert ranges.tolist() == [[[8, 13], [18, 23]], [[28, 33], [38, 43]]]


def test_an_empty_range_hides_nothing():
    hidden = torch.tensor([[5, 5], [7, 3]])
    assert visible(hidden, torch.arange(10)).all()
