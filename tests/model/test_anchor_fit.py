"""model/anchor_fit.py: equal to scikit-learn's ridge, and exact from sums alone."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import Ridge
from torch import Tensor
from torch.nn import functional as F

from model.anchor_fit import (
    CALENDAR_PENALTY,
    NORMS,
    GramAccumulator,
    fit_anchor,
    fit_individual,
    solve,
)
from model.calendar_inputs import calendar_inputs
from model.config import NO_EXTENSION, Calendar, Extension, num_calendar_inputs
from model.linear_anchor import LinearAnchor, Norm
from model.random_features import AT_PENALTY, random_features, random_projection
from tests.helpers.anchor_rows import H, L, centre, phases, random_walks


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
    monkeypatch.setattr("model.anchor_fit.CHUNK_ROWS", 3)
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


def test_refuses_what_does_not_fit():
    sums = GramAccumulator(L, H, "last")
    with pytest.raises(ValueError, match=r"targets has shape \(2, 4\): pass rows of 5"):
        sums.add(torch.zeros(2, L), torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"windows has 2 rows and targets 3"):
        sums.add(torch.zeros(2, L), torch.zeros(3, H))
    with pytest.raises(ValueError, match="11 rows are not those of windows of 3 variates"):
        GramAccumulator(L, H, "last", num_variates=3).add(torch.zeros(11, L), torch.zeros(11, H))
    with pytest.raises(ValueError, match=r"lam=0: pass a penalty above 0"):
        solve(sums.gram, sums.cross, 0)
    with pytest.raises(ValueError, match=r"hold NaN or inf: the windows must be finite"):
        solve(sums.gram * torch.nan, sums.cross, 1.0)
    with pytest.raises(ValueError, match=r"model\.anchor=ridge has 0 training and 0 validation"):
        fit_anchor([sums], [sums])


def accumulate_dates(
    x: Tensor, y: Tensor, phase: Tensor, norm: Norm, calendar: Calendar
) -> GramAccumulator:
    """Sums of windows of two variates each."""
    sums = GramAccumulator(L, H, norm, reads_future=True, extension=Extension(calendar=calendar))
    for start in range(0, len(x), 8):
        part = slice(start, start + 8)
        sums.add(x[part], y[part], 0.5 * y[part], phase[start // 2 : start // 2 + 4])
    return sums


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("calendar", ["year", "day"])
def test_weights_that_follow_the_calendar_are_a_ridge_with_scaled_columns(
    norm: Norm, calendar: Calendar
):
    x, y = (values.double() for values in random_walks(80))
    phase = phases(40)
    sums = accumulate_dates(x, y, phase, norm, calendar)
    penalty = CALENDAR_PENALTY[calendar]
    weight = solve(sums.gram, sums.cross, 20.0, sums.factors)

    loc, rows = centre(x, norm), phase.double().repeat_interleave(2, dim=0)
    scale = penalty**-0.5  # a column that is smaller costs more
    columns = [x - loc, 0.5 * y - loc, scale * calendar_inputs(calendar, x - loc, rows)]
    ridge = Ridge(alpha=20.0, fit_intercept=False, solver="cholesky")
    ridge.fit(torch.cat(columns, dim=1).numpy(), (y - loc).numpy())
    wanted = torch.from_numpy(ridge.coef_.copy())
    wanted[:, L + H :] *= scale
    torch.testing.assert_close(weight, wanted, rtol=1e-4, atol=1e-6)

    anchor = LinearAnchor(L, H, norm, reads_future=True, extension=Extension(calendar=calendar))
    anchor.set_solution(weight, norm)
    predicted = ridge.predict(torch.cat(columns, dim=1).numpy()) + loc.numpy()
    torch.testing.assert_close(
        anchor(x, (0.5 * y).float(), phase), torch.from_numpy(predicted).float(),
        rtol=1e-3, atol=1e-3,
    )  # fmt: skip


@pytest.mark.parametrize("calendar", ["year", "day"])
def test_without_the_calendar_the_sums_are_those_of_weights_that_last(calendar: Calendar):
    x, y = random_walks(40)
    plain = GramAccumulator(L, H, "last", reads_future=True)
    plain.add(x, y, 0.5 * y)
    part = accumulate_dates(x, y, phases(20), "last", calendar).only(NO_EXTENSION)
    for mine, wanted in zip(part.tensors, plain.tensors, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-12, atol=1e-9)
    torch.testing.assert_close(
        fit_anchor([part], [part]).weight,
        fit_anchor([plain], [plain]).weight,
        rtol=1e-9,
        atol=1e-12,
    )


def windows_with_slopes(
    slope: Tensor, num_variates: int, phase: Tensor, calendar: Calendar, seed: int
) -> GramAccumulator:
    """Sums of windows whose futures go back by a part of their newest mean. (R, 1) slopes."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(len(slope), L, generator=generator)
    noise = 0.1 * torch.randn(len(slope), H, generator=generator)
    y = x[:, -1:] + slope * (x[:, -4:].mean(dim=1, keepdim=True) - x[:, -1:]) + noise
    part = GramAccumulator(
        L, H, "last", extension=Extension(calendar=calendar), num_variates=num_variates
    )
    part.add(x, y, None, phase)
    return part


@pytest.mark.parametrize("follows", [True, False])
@pytest.mark.parametrize("calendar", ["year", "day"])
def test_weights_follow_the_calendar_where_that_is_better_on_validation(
    follows: bool, calendar: Calendar
):
    sums = []
    for size, seed in ((600, 1), (300, 2)):
        phase = phases(size, seed)
        cosine = phase[:, 0 if calendar == "year" else 2].repeat_interleave(2)[:, None]
        slope = cosine if follows else torch.full((2 * size, 1), 0.7)
        sums.append(windows_with_slopes(slope, 1, phase, calendar, seed))
    fit = fit_anchor(sums[:1], sums[1:])
    assert fit.extension.calendar == (calendar if follows else "none")
    assert fit.weight.shape == (H, L + num_calendar_inputs(calendar, L))
    assert bool(fit.weight[:, L:].any()) is follows
    assert fit.validation_mse == min(fit.candidates.values()) < 0.1


@pytest.mark.parametrize("follows", [True, False])
def test_only_variates_that_follow_the_day_get_weights_that_do(follows: bool):
    sums = []
    for size, seed in ((600, 1), (300, 2)):
        phase = phases(size, seed)
        slope = torch.full((size, 2), 0.7)
        if follows:
            slope[:, 1] = phase[:, 2]
        sums.append(windows_with_slopes(slope.flatten()[:, None], 2, phase, "day", seed))
    shared = fit_anchor([sums[0].pooled()], [sums[1].pooled()])
    fit = fit_individual(sums[:1], sums[1:], shared)
    assert fit.extension.calendar == ("day" if follows else "none")
    assert fit.validation_mse < 0.02
    moving = fit.weight[..., L:].abs().sum(dim=(1, 2))
    if follows:  # the first one's deviation takes back what the shared weights have of the second
        assert moving[0] < 0.3 * moving[1]
    else:
        assert moving.max() == 0


def accumulate_bends(
    num_windows: int, seed: int, *, bends: bool, num_variates: int = 1, features: int = 64
) -> GramAccumulator:
    """Sums of windows whose futures go on as far as their mean is away; the last variate bends."""
    x, phase = random_walks(num_windows * num_variates, seed)[0], phases(num_windows, seed)
    away = x.mean(dim=1, keepdim=True) - x[:, -1:]
    last = torch.arange(len(x))[:, None] % num_variates == num_variates - 1
    noise = 0.1 * torch.randn(len(x), H, generator=torch.Generator().manual_seed(seed))
    extension = Extension(calendar="day", random_features=features)
    sums = GramAccumulator(L, H, "last", extension=extension, num_variates=num_variates)
    sums.add(x, x[:, -1:] + torch.where(last & bends, away.abs(), away) + noise, None, phase)
    return sums


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dated", [False, True])
def test_with_random_features_it_is_a_ridge_with_their_columns(norm: Norm, dated: bool):
    x, y = (values.double() for values in random_walks(80))
    phase, features = phases(40), 2 * AT_PENALTY
    extension = Extension(calendar="day" if dated else "none", random_features=features)
    sums = GramAccumulator(L, H, norm, reads_future=True, extension=extension)
    sums.add(x, y, 0.5 * y, phase)
    weight = solve(sums.gram, sums.cross, 20.0, sums.factors)

    loc, rows = centre(x, norm), phase.double().repeat_interleave(2, dim=0)
    drawn = random_projection(L, features).double()
    found = random_features(x - loc, drawn, rows if dated else None)
    columns = [x - loc, 0.5 * y - loc]
    columns += [calendar_inputs("day", x - loc, rows)] if dated else []
    inputs = torch.cat([*columns, found * 2**-0.5], dim=1)  # twice as many cost twice as much
    ridge = Ridge(alpha=20.0, fit_intercept=False, solver="cholesky")
    ridge.fit(inputs.numpy(), (y - loc).numpy())
    wanted = torch.from_numpy(ridge.coef_.copy())
    wanted[:, -features:] *= 2**-0.5
    torch.testing.assert_close(weight, wanted, rtol=1e-3, atol=1e-6)

    anchor = LinearAnchor(L, H, norm, reads_future=True, extension=extension)
    anchor.set_solution(weight, norm)
    predicted = torch.from_numpy(ridge.predict(inputs.numpy()) + loc.numpy()).float()
    got = anchor(x, (0.5 * y).float(), phase)
    torch.testing.assert_close(got, predicted, rtol=1e-3, atol=1e-3)
    again = LinearAnchor(L, H, reads_future=True, extension=extension)
    again.projection.zero_()  # what was drawn goes with the weights
    again.load_state_dict(anchor.state_dict())
    assert torch.equal(again(x, (0.5 * y).float(), phase), got)


@pytest.mark.parametrize("bends", [True, False])
def test_random_features_are_read_where_they_are_better_on_validation(bends: bool):
    train, valid = (accumulate_bends(size, size, bends=bends) for size in (600, 300))
    fit = fit_anchor([train], [valid])
    plain = fit_anchor([train.only(NO_EXTENSION)], [valid.only(NO_EXTENSION)])
    assert fit.weight.shape == (H, L + num_calendar_inputs("day", L) + 64)
    assert bool(fit.weight[:, -64:].any()) is bends
    assert fit.extension.random_features == 64 * bends
    assert fit.validation_mse <= plain.validation_mse
    if bends:
        assert fit.validation_mse < 0.5 * plain.validation_mse
    assert train.factors.tolist() == [1.0] * (fit.weight.shape[1] - 64) + [64 / AT_PENALTY] * 64


@pytest.mark.parametrize("bends", [True, False])
def test_only_variates_that_bend_get_random_features(bends: bool):
    train, valid = (
        accumulate_bends(size, size, bends=bends, num_variates=2) for size in (600, 300)
    )
    shared = fit_anchor([train.pooled()], [valid.pooled()])
    fit = fit_individual([train], [valid], shared)
    bent = fit.weight[..., -64:].abs().sum(dim=(1, 2))
    assert fit.extension.random_features == 64 * bends
    assert bool(bent[1] > 0) is bends
    assert bent[0] < 0.3 * bent[1] if bends else bent[0] == 0
    assert fit.validation_mse < 0.05
    errors = valid.squared_error(fit.weight).sum() / (valid.num_rows * H)
    assert fit.validation_mse == pytest.approx(float(errors))


def test_deviations_begin_with_random_features_and_without_them():
    """Of two variates that bend alike beside one that does not, all three are served."""
    train, valid = (accumulate_bends(size, size, bends=True, num_variates=2) for size in (600, 300))
    pooled = train.pooled(), valid.pooled()
    plain = Extension(calendar="day")
    without = fit_anchor([pooled[0].only(plain)], [pooled[1].only(plain)])
    shared = fit_anchor([pooled[0]], [pooled[1]])
    assert shared.extension.random_features
    padded = replace(without, weight=F.pad(without.weight, (0, 64)))
    fit = fit_individual([train], [valid], shared, ())  # nothing may deviate
    other_way = fit_individual([train], [valid], padded, ())  # had it been the best of all
    torch.testing.assert_close(other_way.weight, fit.weight)
    errors = torch.stack(
        [
            valid.squared_error(shared.weight),
            valid.squared_error(F.pad(without.weight, (0, 64))),
        ]
    )
    chosen = errors.argmin(dim=0)
    for variate in range(2):
        wanted = (shared.weight, F.pad(without.weight, (0, 64)))[int(chosen[variate])]
        torch.testing.assert_close(fit.weight[variate], wanted)
    assert fit.deviations == (None, None)


def test_sums_of_two_parts_are_the_sums_of_both():
    x, y = random_walks(60)
    whole, part, rest = (
        accumulate(*rows, "last") for rows in ((x, y), (x[:20], y[:20]), (x[20:], y[20:]))
    )
    part.merge(rest)
    for mine, theirs in zip(part.tensors, whole.tensors, strict=True):
        torch.testing.assert_close(mine, theirs)


def interleaved(num_windows: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Windows of three variates, one after another: two go together, the third against them."""
    x, y = random_walks(3 * num_windows, seed)
    own = torch.tensor([1.0, 1.0, -1.0]).repeat(num_windows)[:, None]
    return x, x[:, -1:] + own * (x[:, -1:] - x[:, :1]) + 0.1 * (y - x[:, -1:])


def accumulate_variates(x: Tensor, y: Tensor, norm: Norm) -> GramAccumulator:
    sums = GramAccumulator(L, H, norm, num_variates=3)
    for start in range(0, len(x), 6):
        sums.add(x[start : start + 6], y[start : start + 6])
    return sums


@pytest.mark.parametrize("norm", NORMS)
def test_sums_of_variates_are_those_of_each_alone(norm: Norm, monkeypatch: pytest.MonkeyPatch):
    x, y = interleaved(20)
    monkeypatch.setattr("model.anchor_fit.CHUNK_ROWS", 5)  # no window is cut
    sums = accumulate_variates(x, y, norm)
    for variate in range(3):
        alone = accumulate(x[variate::3], y[variate::3], norm)
        torch.testing.assert_close(sums.gram[variate], alone.gram)
        torch.testing.assert_close(sums.cross[variate], alone.cross)
        torch.testing.assert_close(sums.target_square[variate], alone.target_square)
    for mine, theirs in zip(sums.pooled().tensors, accumulate(x, y, norm).tensors, strict=True):
        torch.testing.assert_close(mine, theirs)
    weight = torch.randn(3, H, L, generator=torch.Generator().manual_seed(1))
    errors = [
        accumulate(x[variate::3], y[variate::3], norm).squared_error(weight[variate])
        for variate in range(3)
    ]
    torch.testing.assert_close(sums.squared_error(weight), torch.stack(errors))


@pytest.mark.parametrize("norm", NORMS)
def test_a_deviation_is_a_ridge_of_what_shared_weights_leave_over(norm: Norm):
    x, y = (values.double() for values in interleaved(40))
    train, valid = (accumulate_variates(*interleaved(40, seed), norm) for seed in (0, 1))
    shared = fit_anchor([train.pooled()], [valid.pooled()])
    fit = fit_individual([train], [valid], shared, [10.0])
    assert fit.deviations == (10.0, 10.0, 10.0)
    loc = centre(x, norm)
    left = y - loc - (x - loc) @ shared.weight.T
    for variate in range(3):
        ridge = Ridge(alpha=10.0, fit_intercept=False, solver="cholesky")
        ridge.fit((x - loc)[variate::3].numpy(), left[variate::3].numpy())
        wanted = shared.weight + torch.from_numpy(ridge.coef_)
        torch.testing.assert_close(fit.weight[variate], wanted, rtol=1e-4, atol=1e-6)


def test_each_variate_deviates_as_far_as_its_own_validation_likes():
    sums = {}
    for split, seed in (("train", 0), ("val", 1)):
        x, _ = random_walks(3 * 200, seed)
        noise = torch.randn(600, H, generator=torch.Generator().manual_seed(seed))
        own = torch.tensor([1.0, 1.0, -1.0]).repeat(200)[:, None]
        slope = own * (x[:, :1] - x[:, -1:])
        sums[split] = [accumulate_variates(x, x[:, -1:] + slope + 8 * noise, n) for n in NORMS]
    shared = fit_anchor(*([one.pooled() for one in sums[split]] for split in ("train", "val")))
    lambdas = (1e1, 1e3)
    fit = fit_individual(sums["train"], sums["val"], shared, lambdas)
    number = NORMS.index(shared.norm)
    train, valid = sums["train"][number], sums["val"][number]
    for variate in range(3):
        tried: dict[float | None, float] = {
            None: float(valid.squared_error(shared.weight)[variate])
        }
        weights: dict[float | None, Tensor] = {None: shared.weight}
        left = train.cross[variate] - train.gram[variate] @ shared.weight.T
        for lam in lambdas:
            weights[lam] = shared.weight + solve(train.gram[variate], left, lam)
            tried[lam] = float(valid.squared_error(weights[lam])[variate])
        best = min(tried, key=lambda lam: tried[lam])
        assert fit.deviations[variate] == best
        torch.testing.assert_close(fit.weight[variate], weights[best])
    assert fit.deviations[2] is not None  # the one that goes against the others
    assert fit.validation_mse < shared.validation_mse
    errors = valid.squared_error(fit.weight).sum() / (valid.num_rows * H)
    assert fit.validation_mse == pytest.approx(float(errors))
    # Nothing is better than the shared weights where nothing differs: they win the tie.
    same = fit_individual(sums["train"], sums["val"], shared, ())
    assert same.deviations == (None, None, None)
    assert torch.equal(same.weight, shared.weight.expand(3, -1, -1))
    assert same.validation_mse == pytest.approx(shared.validation_mse)
