"""dist_train/random_neighbours.py: chance, within what a query may see."""

import torch

from dist_train.random_neighbours import draw_neighbours

ENTRIES = torch.arange(0, 200, 2)  # ids need not be dense


def draw(hidden: list[list[int]], k: int, starts: list[int]) -> torch.Tensor:
    queries = torch.tensor([[0, start, 1] for start in starts])
    return draw_neighbours(ENTRIES, torch.tensor(hidden), k, queries)


def test_every_visible_entry_comes_up_and_no_hidden_one():
    rows = 400
    drawn = draw([[50, 151]] * rows, 5, list(range(rows)))
    assert set(drawn.flatten().tolist()) == {*range(0, 50, 2), *range(152, 200, 2)}
    assert all(len(set(row)) == 5 for row in drawn.tolist())  # none twice
    counts = torch.bincount(drawn.flatten() // 2, minlength=100)
    visible = counts[counts > 0].double()
    expected = rows * 5 / len(visible)
    # Pearson's statistic stays below its mean plus five deviations where all are as likely.
    assert float(((visible - expected) ** 2 / expected).sum()) < len(visible) + 5 * 10


def test_a_draw_belongs_to_its_query():
    one = draw([[50, 151], [0, 20]], 5, [3, 4])
    other = draw([[0, 20], [50, 151], [50, 151]], 5, [4, 3, 5])
    assert torch.equal(one[0], other[1])
    assert torch.equal(one[1], other[0])
    assert not torch.equal(other[1], other[2])


def test_a_window_before_the_training_data_has_a_draw_too():
    one = draw([[0, 20], [0, 20]], 5, [-3, 3])
    assert (one >= 20).all()
    assert not torch.equal(one[0], one[1])


def test_a_query_that_sees_too_few_gets_those():
    drawn = draw([[4, 200], [0, 400]], 5, [0, 1])
    assert sorted(drawn[0].tolist()) == [-1, -1, -1, 0, 2]
    assert drawn[1].tolist() == [-1] * 5


def test_several_ranges_are_stepped_over_and_one_is_as_before():
    rows, hidden = 300, [[0, 21], [50, 50], [60, 151], [190, 200]]
    queries = torch.tensor([[0, start, 1] for start in range(rows)])
    ranges = torch.tensor([hidden] * rows)
    drawn = draw_neighbours(ENTRIES, ranges, 5, queries)
    expected = {*range(22, 60, 2), *range(152, 190, 2)}
    assert set(drawn.flatten().tolist()) == expected
    one = draw_neighbours(ENTRIES, torch.tensor([[50, 151]] * rows), 5, queries)
    same = [[0, 0], [50, 151], [160, 160]]
    assert torch.equal(draw_neighbours(ENTRIES, torch.tensor([same] * rows), 5, queries), one)
