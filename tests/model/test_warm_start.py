"""model/warm_start.py: what fits is taken over, what nearly fits is stretched, and it is said."""

import pytest
import torch

from model.resize import resize_last_dim
from model.warm_start import take_over


def test_weights_of_the_same_shape_are_copied_and_nothing_is_said():
    theirs = {"a": torch.randn(3, 4), "b": torch.randn(5)}
    chosen, told = take_over(theirs, {"a": torch.zeros(3, 4), "b": torch.zeros(5)})
    assert told == []
    assert all(torch.equal(chosen[name], theirs[name]) for name in theirs)
    chosen["a"].zero_()
    assert theirs["a"].any()  # a copy


@pytest.mark.parametrize("axis", [0, 1])
def test_one_axis_of_another_length_is_interpolated(axis: int):
    theirs = torch.randn(6, 6)
    shape = [6, 6]
    shape[axis] = 9
    chosen, told = take_over({"a": theirs}, {"a": torch.zeros(shape)})
    moved = theirs.movedim(axis, -1)
    torch.testing.assert_close(chosen["a"].movedim(axis, -1), resize_last_dim(moved, 9))
    assert chosen["a"].is_contiguous()
    assert told == ["warning: 1 weights of width 6 were aligned to width 9 by linear interpolation"]


def test_each_pair_of_widths_is_told_once():
    theirs = {"head.weight": torch.randn(12, 8), "head.bias": torch.randn(12)}
    own = {"head.weight": torch.zeros(24, 8), "head.bias": torch.zeros(24)}
    _, told = take_over(theirs, own)
    (line,) = told
    assert "2 weights of width 12 were aligned to width 24" in line


def test_what_is_missing_or_differs_in_more_begins_anew_and_is_named():
    theirs = {"a": torch.ones(2), "b": torch.ones(2, 2), "c": torch.ones(2), "old": torch.ones(1)}
    own = {"a": torch.zeros(2), "b": torch.zeros(3, 3), "c": torch.zeros(1, 2), "d": torch.zeros(7)}
    chosen, told = take_over(theirs, own)
    assert chosen.keys() == own.keys()
    assert chosen["a"].all()
    assert not any(chosen[name].any() for name in "bcd")
    assert told == ["warning: 3 weights begin anew, the checkpoint has none: b, c, d"]


def test_the_type_is_that_of_the_own_weight():
    chosen, _ = take_over({"a": torch.ones(2).bfloat16()}, {"a": torch.zeros(3)})
    assert chosen["a"].dtype == torch.float32


def test_refuses_a_checkpoint_of_which_nothing_fits():
    with pytest.raises(ValueError, match="none of the checkpoint's weights fits this model"):
        take_over({"x": torch.ones(2)}, {"a": torch.zeros(2)})
