"""model/random_features.py: the cells of a window, the features by hand, their kernel."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from model.random_features import _cells, random_features, random_projection

L, F = 40, 12


def windows(count: int = 5, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, L, generator=generator, dtype=torch.float64).cumsum(dim=1)
    return rows - rows[:, -1:]


def phases(count: int = 5) -> Tensor:
    angles = 6.3 * torch.rand(count, 2, generator=torch.Generator().manual_seed(1))
    return torch.stack([angles.cos(), angles.sin()], dim=2).flatten(1).double()


@pytest.mark.parametrize("seq_len", [1, 5, 16, 17, 40, 336, 720])
def test_each_step_is_in_one_cell_and_cells_widen_with_age(seq_len: int):
    cells = _cells(seq_len)
    assert ((cells > 0).sum(axis=1) == 1).all()
    np.testing.assert_allclose(cells.sum(axis=0), 1)
    newest_first = (cells > 0).sum(axis=0)
    wanted = [2 ** (number // 16) for number in range(len(newest_first))]
    assert newest_first[:-1].tolist() == wanted[:-1]  # the oldest one is what is left
    assert 1 <= newest_first[-1] <= wanted[-1]
    assert [int(np.flatnonzero(cell)[-1]) for cell in cells.T[:3]] == [
        seq_len - 1 - number for number in range(min(3, seq_len))
    ]


@pytest.mark.parametrize("dated", [False, True])
def test_a_feature_is_the_positive_part_of_a_sum_times_the_scale(dated: bool):
    rows, phase, drawn = windows(), phases(), random_projection(L, F).double()
    found = random_features(rows, drawn, phase if dated else None)
    for row, feature in np.ndindex(5, F):
        window, scale = rows[row].numpy(), rows[row].numpy().std()
        angle = math.atan2(float(phase[row, 3]), float(phase[row, 2]))
        weights = drawn[:, feature].numpy()
        total = weights[:L] @ (window / scale) + weights[-1]
        if dated:
            waves = [math.cos(angle), math.sin(angle), math.cos(2 * angle), math.sin(2 * angle)]
            total += weights[L : L + 4] @ waves
        assert float(found[row, feature]) == pytest.approx(max(0.0, total) * scale, abs=1e-12)
    assert 0.2 < float((found > 0).double().mean()) < 0.8


def test_features_have_the_scale_of_the_window():
    rows, drawn = windows(), random_projection(L, F).double()
    once = random_features(rows, drawn, phases())
    torch.testing.assert_close(random_features(1000 * rows, drawn, phases()), 1000 * once)
    still = random_features(torch.zeros(2, L), drawn.float(), None)
    assert torch.equal(still, torch.zeros(2, F))
    assert torch.equal(random_features(rows[:1, :1], drawn[-6:], None), torch.zeros(1, F).double())


def test_every_run_draws_the_same():
    drawn = random_projection(L, F)
    random_projection.cache_clear()
    assert torch.equal(random_projection(L, F), drawn)
    assert drawn.dtype == torch.float32
    assert drawn.shape == (L + 5, F)


def test_many_features_are_the_arc_cosine_kernel():
    rows, phase, many = windows(2), phases(2), 40000
    drawn = random_projection(L, many).double()
    scale = rows.std(dim=1, keepdim=True, correction=0)
    found = random_features(rows, drawn, phase) / scale
    # Cho and Saul 2009, order 1, of what the random sums are made of.
    cells = torch.from_numpy(_cells(L))
    angle = torch.atan2(phase[:, 3:4], phase[:, 2:3])
    waves = torch.cat([angle.cos(), angle.sin(), (2 * angle).cos(), (2 * angle).sin()], dim=1)
    seen = 1.5 / cells.shape[1] ** 0.5 * (rows / scale) @ cells
    made_of = torch.cat([seen, 2 * waves, torch.full((2, 1), 0.5)], dim=1)
    norms = made_of.norm(dim=1)
    between = torch.acos(made_of[0] @ made_of[1] / norms.prod())
    wanted = norms.prod() / (2 * math.pi) * (between.sin() + (math.pi - between) * between.cos())
    assert float((found[0] * found[1]).mean()) == pytest.approx(float(wanted), rel=0.03)
