"""dist_train/baseline_names.py: every baseline belongs to a group, and is known by one name."""

from dist_train.baseline_names import BASELINES, DEFAULT_GROUPS, DETERMINISTIC


def test_every_baseline_but_the_long_one_is_scored_by_default_once():
    named = [name for group in DEFAULT_GROUPS for name in group]
    assert sorted([*named, "patchtst"]) == sorted(BASELINES)
    assert len(set(BASELINES.values())) == len(BASELINES)
    assert set(BASELINES) - DETERMINISTIC == {"dlinear", "patchtst"}


def test_no_group_mixes_what_needs_seeds_with_what_does_not():
    assert all(len({name in DETERMINISTIC for name in group}) == 1 for group in DEFAULT_GROUPS)
