"""model/linear_anchor.py: equal to scikit-learn's ridge, and exact from sums alone."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import Ridge
from torch import Tensor, nn

from model.linear_anchor import (
    YEAR_PENALTY,
    GramAccumulator,
    LinearAnchor,
    Norm,
    fit_anchor,
    solve,
)

L, H = 12, 5
NORMS: tuple[Norm, ...] = ("last", "mean")


def random_walks(num_rows: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    steps = torch.randn(num_rows, L + H, generator=torch.Generator().manual_seed(seed))
    walks = steps.cumsum(dim=1) + 3
    return walks[:, :L], walks[:, L:]


def centre(x: Tensor, norm: Norm) -> Tensor:
    return x[:, -1:] if norm == "last" else x.mean(dim=1, keepdim=True)


def accumulate(x: Tensor, y: Tensor, norm: Norm) -> GramAccumulator:
    sums = GramAccumulator(L, H, norm)
    for start in range(0, len(x), 7):
        sums.add(x[start : start + 7], y[start : start + 7])
    return sums


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("lam", [10.0, 1e4])
def test_equals_the_ridge_of_scikit_learn(norm: Norm, lam: float):
    x, y = (values.double() for values in random_walks(100))
    loc = centre(x, norm)
    ridge = Ridge(alpha=lam, fit_intercept=False, solver="cholesky")
    ridge.fit((x - loc).numpy(), (y - loc).numpy())

    sums = accumulate(x, y, norm)
    weight = solve(sums.gram, sums.cross, lam)
    torch.testing.assert_close(weight, torch.from_numpy(ridge.coef_), rtol=1e-6, atol=1e-8)

    anchor = LinearAnchor(L, H, norm)
    anchor.set_solution(weight, norm)
    predicted = torch.from_numpy(ridge.predict((x - loc).numpy())) + loc
    torch.testing.assert_close(anchor(x), predicted.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("norm", NORMS)
def test_sums_score_a_candidate_as_a_pass_over_the_windows_would(norm: Norm):
    x, y = random_walks(50)
    weight = torch.randn(H, L, generator=torch.Generator().manual_seed(1))
    loc = centre(x, norm)
    wanted = (y - loc - (x - loc) @ weight.T).double().square().sum()
    torch.testing.assert_close(
        accumulate(x, y, norm).squared_error(weight), wanted, rtol=1e-5, atol=0
    )


def test_validation_picks_what_a_search_over_windows_picks():
    (x, y), (vx, vy) = random_walks(40), random_walks(30, seed=1)
    lambdas = (10.0, 100.0, 1000.0)
    fit = fit_anchor(
        [accumulate(x, y, norm) for norm in NORMS],
        [accumulate(vx, vy, norm) for norm in NORMS],
        lambdas,
    )
    slow = {}
    for norm in NORMS:
        for lam in lambdas:
            sums = accumulate(x, y, norm)
            anchor = LinearAnchor(L, H)
            anchor.set_solution(solve(sums.gram, sums.cross, lam), norm)
            slow[norm, lam] = (anchor(vx) - vy).square().mean().item()
    assert fit.candidates == pytest.approx(slow, rel=1e-4)
    assert (fit.norm, fit.lam) == min(slow, key=lambda key: slow[key])
    assert fit.validation_mse == pytest.approx(min(slow.values()), rel=1e-4)


@given(cut=st.integers(0, 40), norm=st.sampled_from(NORMS))
def test_shares_of_two_ranks_add_up_to_one_pass(cut: int, norm: Norm):
    x, y = random_walks(40)
    parts = [accumulate(x[:cut], y[:cut], norm), accumulate(x[cut:], y[cut:], norm)]
    for mine, other in zip(parts[0].tensors, parts[1].tensors, strict=True):
        mine += other  # what an all-reduce does
    for summed, wanted in zip(parts[0].tensors, accumulate(x, y, norm).tensors, strict=True):
        torch.testing.assert_close(summed, wanted)


def test_rows_larger_than_a_chunk_count_once(monkeypatch: pytest.MonkeyPatch):
    x, y = random_walks(20)
    whole = GramAccumulator(L, H, "last")
    whole.add(x, y)
    monkeypatch.setattr("model.linear_anchor.CHUNK_ROWS", 3)
    chunked = GramAccumulator(L, H, "last")
    chunked.add(x, y)
    for got, wanted in zip(chunked.tensors, whole.tensors, strict=True):
        torch.testing.assert_close(got, wanted)
    assert whole.num_rows == 20


@pytest.mark.parametrize("norm", NORMS)
def test_rows_without_variance_give_finite_numbers(norm: Norm):
    sums = accumulate(torch.full((9, L), 4.0), torch.full((9, H), 4.0), norm)
    weight = solve(sums.gram, sums.cross, 10.0)
    anchor = LinearAnchor(L, H)
    anchor.set_solution(weight, norm)
    assert sums.squared_error(weight) == 0
    torch.testing.assert_close(anchor(torch.full((2, L), -1.0)), torch.full((2, H), -1.0))


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


def test_has_nothing_to_train():
    assert list(LinearAnchor(L, H).parameters()) == []


def test_refuses_what_does_not_fit():
    anchor, sums = LinearAnchor(L, H), GramAccumulator(L, H, "last")
    with pytest.raises(ValueError, match=r"weight has shape \(12, 5\): .*\(5, 12\)"):
        anchor.set_solution(torch.zeros(L, H), "last")
    with pytest.raises(ValueError, match=r"rows has shape \(2, 9\): pass rows of 12"):
        anchor(torch.zeros(2, 9))
    with pytest.raises(ValueError, match=r"targets has shape \(2, 4\): pass rows of 5"):
        sums.add(torch.zeros(2, L), torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"windows has 2 rows and targets 3"):
        sums.add(torch.zeros(2, L), torch.zeros(3, H))
    with pytest.raises(ValueError, match=r"lam=0: pass a penalty above 0"):
        solve(sums.gram, sums.cross, 0)
    with pytest.raises(ValueError, match=r"hold NaN or inf: the windows must be finite"):
        solve(sums.gram * torch.nan, sums.cross, 1.0)
    with pytest.raises(ValueError, match=r"model\.anchor=ridge has 0 training and 0 validation"):
        fit_anchor([sums], [sums])


def phases(size: int, seed: int = 5) -> Tensor:
    angle = 6.3 * torch.rand(size, generator=torch.Generator().manual_seed(seed))
    return torch.stack([angle.cos(), angle.sin()], dim=1)


def accumulate_years(x: Tensor, y: Tensor, phase: Tensor, norm: Norm) -> GramAccumulator:
    """Sums of windows of two variates each."""
    sums = GramAccumulator(L, H, norm, reads_future=True, follows_year=True)
    for start in range(0, len(x), 8):
        part = slice(start, start + 8)
        sums.add(x[part], y[part], 0.5 * y[part], phase[start // 2 : start // 2 + 4])
    return sums


@pytest.mark.parametrize("norm", NORMS)
def test_weights_that_follow_the_year_are_a_ridge_with_scaled_columns(norm: Norm):
    x, y = (values.double() for values in random_walks(80))
    phase = phases(40)
    sums = accumulate_years(x, y, phase, norm)
    weight = solve(sums.gram, sums.cross, 20.0, sums.num_lasting)

    loc, rows = centre(x, norm), phase.double().repeat_interleave(2, dim=0)
    scale = YEAR_PENALTY**-0.5  # a column that is smaller costs more
    columns = [x - loc, 0.5 * y - loc]
    columns += [scale * (x - loc) * rows[:, side : side + 1] for side in (0, 1)]
    ridge = Ridge(alpha=20.0, fit_intercept=False, solver="cholesky")
    ridge.fit(torch.cat(columns, dim=1).numpy(), (y - loc).numpy())
    wanted = torch.from_numpy(ridge.coef_.copy())
    wanted[:, L + H :] *= scale
    torch.testing.assert_close(weight, wanted, rtol=1e-4, atol=1e-6)

    anchor = LinearAnchor(L, H, norm, reads_future=True, follows_year=True)
    anchor.set_solution(weight, norm)
    predicted = ridge.predict(torch.cat(columns, dim=1).numpy()) + loc.numpy()
    torch.testing.assert_close(
        anchor(x, (0.5 * y).float(), phase), torch.from_numpy(predicted).float(),
        rtol=1e-3, atol=1e-3,
    )  # fmt: skip


def test_without_the_year_the_sums_are_those_of_weights_that_last():
    x, y = random_walks(40)
    plain = GramAccumulator(L, H, "last", reads_future=True)
    plain.add(x, y, 0.5 * y)
    part = accumulate_years(x, y, phases(20), "last").lasting()
    for mine, wanted in zip(part.tensors, plain.tensors, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-12, atol=1e-9)
    torch.testing.assert_close(
        fit_anchor([part], [part]).weight,
        fit_anchor([plain], [plain]).weight,
        rtol=1e-9,
        atol=1e-12,
    )


@pytest.mark.parametrize("follows", [True, False])
def test_weights_follow_the_year_where_that_is_better_on_validation(follows: bool):
    generator = torch.Generator().manual_seed(9)
    sums = []
    for size, seed in ((600, 1), (300, 2)):
        x = torch.randn(2 * size, L, generator=generator)
        phase = phases(size, seed)
        slope = phase[:, :1].repeat_interleave(2, dim=0) if follows else torch.tensor(0.7)
        y = (
            slope * (x[:, :1] - x[:, -1:])
            + x[:, -1:]
            + 0.1 * torch.randn(2 * size, H, generator=generator)
        )
        part = GramAccumulator(L, H, "last", follows_year=True)
        part.add(x, y, None, phase)
        sums.append(part)
    fit = fit_anchor(sums[:1], sums[1:])
    assert fit.follows_year is follows
    assert fit.weight.shape == (H, 3 * L)
    assert bool(fit.weight[:, L:].any()) is follows
    assert fit.validation_mse == min(fit.candidates.values()) < 0.1


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


def test_sums_of_two_parts_are_the_sums_of_both():
    x, y = random_walks(60)
    whole, part, rest = (
        accumulate(*rows, "last") for rows in ((x, y), (x[:20], y[:20]), (x[20:], y[20:]))
    )
    part.merge(rest)
    for mine, theirs in zip(part.tensors, whole.tensors, strict=True):
        torch.testing.assert_close(mine, theirs)
