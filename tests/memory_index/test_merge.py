"""memory_index/merge.py: candidates of many shards against a sorted list."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from memory_index.merge import merge_neighbours


@settings(deadline=None, max_examples=200)
@given(
    rows=st.lists(
        st.lists(
            st.tuples(st.sampled_from([0.0, 0.5, 0.5000001, 3.0]), st.integers(-1, 30)),
            min_size=6,
            max_size=6,
            unique_by=lambda pair: pair[1] if pair[1] >= 0 else object(),
        ),
        min_size=1,
        max_size=4,
    ),
    k=st.integers(1, 9),
)
def test_equals_a_sorted_list_with_ties_by_id(rows: list[list[tuple[float, int]]], k: int):
    table = torch.tensor(rows, dtype=torch.float64)
    distances, ids = merge_neighbours(table[..., 0].float(), table[..., 1].long(), k)
    for row, got_distances, got_ids in zip(rows, distances.tolist(), ids.tolist(), strict=True):
        best = sorted((torch.tensor(d).item(), name) for d, name in row if name >= 0)[:k]
        best += [(torch.inf, -1)] * (k - len(best))
        assert list(zip(got_distances, got_ids, strict=True)) == best


def test_what_stands_beside_no_id_does_not_matter():
    # FAISS pads with the largest number there is, and a buffer that was not filled holds zeros.
    distances = torch.tensor([[0.0, 3.4e38, 2.0, torch.nan]])
    merged = merge_neighbours(distances, torch.tensor([[-1, -1, 7, -1]]), 2)
    assert merged[0].tolist() == [[2.0, torch.inf]]
    assert merged[1].tolist() == [[7, -1]]


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]])
def test_equal_distances_go_to_the_smaller_id_in_whatever_order_they_come(order: list[int]):
    ids = torch.tensor([[40, 10, 30, 20]])[:, order]
    assert merge_neighbours(torch.ones(1, 4), ids, 3)[1].tolist() == [[10, 20, 30]]


def test_no_candidate_and_no_query_give_empty_slots():
    empty = torch.empty(2, 0), torch.empty(2, 0, dtype=torch.int64)
    assert merge_neighbours(*empty, 3)[1].tolist() == [[-1] * 3] * 2
    nobody = torch.empty(0, 4), torch.empty(0, 4, dtype=torch.int64)
    assert merge_neighbours(*nobody, 3)[0].shape == (0, 3)
