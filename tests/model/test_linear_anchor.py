"""model/linear_anchor.py: forecasts on any scale, of each source and variate, whatever the cast."""

import pytest
import torch
from torch import nn

from model.anchor_fit import NORMS
from model.config import NO_EXTENSION, Extension
from model.linear_anchor import LinearAnchor, Norm
from tests.helpers.anchor_rows import H, L, centre, random_walks


@pytest.mark.parametrize("norm", NORMS)
def test_forecast_follows_any_affine_scale(norm: Norm):
    anchor = LinearAnchor(L, H)
    anchor.set_solution(torch.randn(H, L), norm)
    x, _ = random_walks(3)
    torch.testing.assert_close(anchor(2 * x + 5), 2 * anchor(x) + 5, rtol=1e-4, atol=1e-4)


def test_weight_and_norm_survive_a_state_dict():
    saved = LinearAnchor(L, H)
    saved.set_solution(torch.randn(H, L), "mean")
    loaded = LinearAnchor(L, H, "last")
    loaded.load_state_dict(saved.state_dict())
    x, _ = random_walks(3)
    assert torch.equal(loaded(x), saved(x))
    assert not loaded.subtracts_last


def test_stays_float32_when_the_model_is_cast():
    anchor = LinearAnchor(L, H)
    anchor.set_solution(torch.randn(H, L), "last")
    x, _ = random_walks(3)
    before = anchor(x)
    nn.Sequential(anchor).bfloat16().half()
    assert anchor.weight.dtype == torch.float32
    assert torch.equal(anchor(x), before)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(anchor(x), before)


def test_what_was_drawn_stays_float32_too():
    extension = Extension(random_features=8)
    anchor = LinearAnchor(L, H, extension=extension)
    anchor.set_solution(torch.randn(H, L + 8), "last")
    x, _ = random_walks(3)
    before = anchor(x)
    nn.Sequential(anchor).bfloat16().half()
    assert torch.equal(anchor(x), before)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(anchor(x), before)


def test_refuses_what_does_not_fit():
    anchor = LinearAnchor(L, H)
    with pytest.raises(ValueError, match=r"weight has shape \(12, 5\): .*\(5, 12\)"):
        anchor.set_solution(torch.zeros(L, H), "last")
    with pytest.raises(ValueError, match=r"rows has shape \(2, 9\): pass rows of 12"):
        anchor(torch.zeros(2, 9))


def test_has_nothing_to_train():
    assert list(LinearAnchor(L, H).parameters()) == []


def test_each_source_has_a_solution_of_its_own():
    rows, _ = random_walks(12)
    weights = torch.randn(3, H, L, generator=torch.Generator().manual_seed(5))
    norms: tuple[Norm, ...] = ("last", "mean", "last")
    together = LinearAnchor(L, H, num_sources=3)
    for source in range(3):
        together.set_solution(weights[source], norms[source], source)
    sources = torch.tensor([2, 0, 1, 2])  # of windows of three variates each
    forecast = together(rows, sources=sources)
    for row, source in enumerate(sources.repeat_interleave(3).tolist()):
        alone = LinearAnchor(L, H)
        alone.set_solution(weights[source], norms[source])
        torch.testing.assert_close(forecast[row : row + 1], alone(rows[row : row + 1]))
    again = LinearAnchor(L, H, num_sources=3)
    again.load_state_dict(together.state_dict())
    assert torch.equal(again(rows, sources=sources), forecast)


@pytest.mark.parametrize("norm", NORMS)
def test_each_variate_is_forecast_with_its_own_weights(norm: Norm):
    x, y = random_walks(12)
    weights = torch.randn(3, H, L + H, generator=torch.Generator().manual_seed(5))
    together = LinearAnchor(L, H, reads_future=True, num_variates=3)
    together.set_solution(weights, norm)
    forecast = together(x, 0.5 * y)
    for variate in range(3):
        alone = LinearAnchor(L, H, reads_future=True)
        alone.set_solution(weights[variate], norm)
        torch.testing.assert_close(forecast[variate::3], alone(x[variate::3], 0.5 * y[variate::3]))
    torch.testing.assert_close(together.centre(x), centre(x, norm))
    with pytest.raises(ValueError, match="11 rows are not those of windows of 3 variates"):
        together(x[:11], y[:11])
    together.set_solution(weights[1], norm)  # all share it then
    alone = LinearAnchor(L, H, reads_future=True)
    alone.set_solution(weights[1], norm)
    torch.testing.assert_close(together(x, y), alone(x, y))
    with pytest.raises(ValueError, match=r"this anchor was built for .*, 3 times"):
        together.set_solution(weights[:2], norm)


def test_its_parts_are_what_each_input_is_multiplied_with():
    extension = Extension(calendar="day", random_features=5)
    anchor = LinearAnchor(L, H, reads_future=True, extension=extension)
    for number, part in enumerate(anchor.parts, start=1):
        part.fill_(number)
    sizes = [L, H, extension.num_inputs(L) - 5, 5]
    wanted = torch.repeat_interleave(torch.arange(1.0, 5.0), torch.tensor(sizes))
    assert torch.equal(anchor.weight, wanted.expand(H, -1))
    assert [part.numel() for part in LinearAnchor(L, H).parts] == [L * H, 0, 0, 0]


def test_a_source_that_was_solved_without_the_calendar_reads_none_of_it():
    rows, _ = random_walks(12)
    whole, bare = Extension(calendar="day", random_features=5), Extension(random_features=5)
    follows, blind, together = (
        LinearAnchor(L, H, extension=whole),
        LinearAnchor(L, H, extension=bare),
        LinearAnchor(L, H, extension=whole, num_sources=3),
    )
    generator = torch.Generator().manual_seed(5)
    weights = [torch.randn(one.weight.shape, generator=generator) for one in (follows, blind)]
    for number, (weight, extension) in enumerate(zip(weights, (whole, bare), strict=True)):
        together.set_solution(weight, "last", number, extension)
    together.set_solution(torch.ones(H, L), "last", 2, NO_EXTENSION)
    follows.set_solution(weights[0], "last")
    blind.set_solution(weights[1], "last")
    phase = torch.randn(4, 4, generator=generator)
    found = together(rows, None, phase, torch.tensor([0, 1, 1, 2]))
    torch.testing.assert_close(found[:3], follows(rows[:3], None, phase[:1]))
    torch.testing.assert_close(found[3:9], blind(rows[3:9]))
    plain = LinearAnchor(L, H)
    plain.set_solution(torch.ones(H, L), "last")
    torch.testing.assert_close(found[9:], plain(rows[9:]))
    alone = LinearAnchor(L, H, extension=whole)
    alone.set_solution(weights[1], "last", extension=bare)
    torch.testing.assert_close(alone(rows, None, phase), blind(rows))


@pytest.mark.parametrize("width", [L - 2, L + H + 7, L + 7 + 1])
def test_a_solution_that_fits_nowhere_is_refused(width: int):
    whole = Extension(calendar="day", random_features=7)
    anchor = LinearAnchor(L, H, extension=whole)
    with pytest.raises(ValueError, match="this anchor was built for"):
        anchor.set_solution(torch.zeros(H, width), "last", extension=Extension(random_features=7))
    reads = LinearAnchor(L, H, reads_future=True, extension=whole)
    with pytest.raises(ValueError, match="this anchor was built for"):
        reads.set_solution(torch.zeros(H, L + 7), "last", extension=Extension(random_features=7))
