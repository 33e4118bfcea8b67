"""dist_train/conformal.py: intervals cover what they promise, and nothing is promised in vain."""

import itertools
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_train.conformal import (
    LEVELS,
    Calibration,
    bounds_of,
    channel_floor,
    supported_levels,
    window_spread,
)


def calibration(windows: int = 500, channels: int = 3, pooled: bool = False) -> Calibration:
    rng = np.random.default_rng(windows)
    scores = rng.gamma(2.0, size=(windows, 1 if pooled else channels, 4)) - 2
    levels = supported_levels(windows)
    lower, upper = bounds_of(scores.astype(np.float32), levels)
    floor = np.linspace(0.1, 0.3, channels, dtype=np.float32)
    return Calibration(
        levels=levels, lower=lower, upper=upper, floor=floor, num_windows=windows,
        facts={"method": "m"},
    )  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(
    windows=st.integers(25, 200),
    level=st.sampled_from([50, 80, 90]),
    skew=st.floats(0.3, 4.0),
    seed=st.integers(0, 10**6),
)
def test_exchangeable_errors_are_covered_as_often_as_the_level_says(
    windows: int, level: int, skew: float, seed: int
):
    rng = np.random.default_rng(seed)
    trials = 4000
    errors = rng.gamma(skew, size=(windows + 1, trials)) ** 2
    (lower,), (upper,) = bounds_of(errors[:-1], [level])
    covered = ((errors[-1] >= lower) & (errors[-1] <= upper)).mean()
    noise = 4 * np.sqrt(level / 100 * (1 - level / 100) / trials)
    # At least the level, and at most one rank in each tail more.
    assert level / 100 - noise <= covered <= level / 100 + 2 / (windows + 1) + noise


def test_bounds_are_the_ranks_that_a_count_by_hand_gives():
    errors = np.random.default_rng(0).permutation(np.arange(1.0, 20.0))[:, None]  # 1 to 19
    (lower,), (upper,) = bounds_of(errors, [90])
    assert (lower[0], upper[0]) == (1, 19)  # 20 places for the next one, 18 of them inside
    (lower,), (upper,) = bounds_of(errors, [80])
    assert (lower[0], upper[0]) == (2, 18)


@given(windows=st.integers(1, 3000))
def test_a_level_is_supported_exactly_where_a_tail_holds_a_window(windows: int):
    expected = tuple(level for level in LEVELS if (windows + 1) * (100 - level) / 200 >= 1 - 1e-9)
    assert supported_levels(windows) == expected


@pytest.mark.parametrize("pooled", [False, True])
def test_an_interval_is_the_rank_times_the_spread_of_the_window_and_its_channel(pooled: bool):
    known = calibration(pooled=pooled)
    rng = np.random.default_rng(1)
    forecast, context = rng.normal(size=(5, 4, 2)), rng.normal(size=(5, 30, 2))
    channels = rng.integers(0, 3, size=(5, 2))
    lower, upper = known.interval(forecast, context, channels, 80)
    place = known.levels.index(80)
    for b, h, n in np.ndindex(5, 4, 2):
        channel = channels[b, n]
        row = 0 if pooled else channel
        spread = np.sqrt(np.var(context[b, :, n]) + float(known.floor[channel]) ** 2)
        assert lower[b, h, n] == pytest.approx(
            forecast[b, h, n] + known.lower[place, row, h] * spread, rel=1e-6
        )
        assert upper[b, h, n] == pytest.approx(
            forecast[b, h, n] + known.upper[place, row, h] * spread, rel=1e-6
        )


@given(levels=st.lists(st.floats(0.01, 98.0), min_size=2, max_size=6, unique=True))
@settings(deadline=None)
def test_a_higher_level_never_has_a_narrower_interval(levels: list[float]):
    known = calibration()
    bounds = [known.offsets(level) for level in sorted(levels)]
    for (lower, upper), (wider_lower, wider_upper) in itertools.pairwise(bounds):
        assert (wider_lower <= lower + 1e-12).all()
        assert (wider_upper >= upper - 1e-12).all()
        assert (lower <= upper).all()


def test_between_two_levels_bounds_are_interpolated():
    known = calibration()
    below, above = known.offsets(80), known.offsets(85)
    between = known.offsets(82.5)
    for number in (0, 1):
        np.testing.assert_allclose(between[number], (below[number] + above[number]) / 2)


@pytest.mark.parametrize("level", [0, 100, -5, 101, float("nan"), float("inf"), True, "80", None])
def test_a_level_that_is_no_percentage_is_refused(level: object):
    with pytest.raises(ValueError, match=rf"level={level!r}: an interval's level is a percentage"):
        calibration().check_level(level)  # type: ignore[arg-type]


def test_a_level_that_validation_cannot_support_is_refused_by_name():
    known = calibration(windows=39)
    for level in (95, np.int64(95), np.float32(62.5)):
        known.check_level(level)
    expected = "level=99: 39 validation windows bound no more than 95 %"
    with pytest.raises(ValueError, match=re.escape(expected)):
        known.offsets(99)


def test_a_window_without_variance_still_has_a_spread():
    floor = channel_floor(np.zeros((10, 2)))
    assert (floor > 0).all()
    spread = window_spread(np.ones((3, 20, 2), dtype=np.float32), np.tile(floor, (3, 1)))
    assert (spread > 0).all()
    assert (window_spread(np.arange(20.0).reshape(1, 20, 1), np.zeros((1, 1))) > 5).all()


def test_tensors_bring_it_back_equal():
    known = calibration()
    again = Calibration.from_tensors(*known.to_tensors())
    assert (again.levels, again.num_windows, again.facts) == (
        known.levels, known.num_windows, known.facts,
    )  # fmt: skip
    for name in ("lower", "upper", "floor"):
        np.testing.assert_array_equal(getattr(again, name), getattr(known, name))


def test_what_does_not_belong_together_is_refused():
    tensors, facts = calibration().to_tensors()
    with pytest.raises(ValueError, match="calibration format 9, this code reads 1"):
        Calibration.from_tensors(tensors, facts | {"format": 9})
    for wrong in (
        {"levels": facts["levels"][1:]},
        {"levels": [*facts["levels"], 99.95]},
    ):
        with pytest.raises(ValueError, match="these do not belong together"):
            Calibration.from_tensors(tensors, facts | wrong)
    with pytest.raises(ValueError, match="these do not belong together"):
        Calibration.from_tensors(tensors | {"floor": tensors["floor"][:2]}, facts)


def test_a_step_that_some_windows_lack_is_ranked_over_those_that_have_it():
    errors = np.random.default_rng(0).normal(size=(60, 4))
    errors[30:, 1] = np.nan
    errors[3:, 2] = np.nan
    errors[:, 3] = np.nan
    found = np.stack(bounds_of(errors, [80, 90]))
    np.testing.assert_array_equal(found[..., 0], np.stack(bounds_of(errors[:, 0], [80, 90])))
    np.testing.assert_array_equal(found[..., 1], np.stack(bounds_of(errors[:30, 1], [80, 90])))
    assert np.isnan(found[..., 2:]).all()  # three windows bound no 80 %
