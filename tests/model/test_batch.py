"""model/batch.py: an engine finds, and may replace, every tensor that crosses the border."""

import os

import pytest
import torch
from torch import Tensor

from model.batch import ForecastInputs, ForecastOutput, RetrievedWindows, TrendPrediction
from model.trend_labels import TrendLabels

NESTED = {"trend": TrendPrediction, "labels": TrendLabels}
CLASSES = [ForecastInputs, RetrievedWindows, TrendPrediction, ForecastOutput, TrendLabels]


def filled(cls: type) -> tuple[object, ...]:
    """An object with a different tensor in every field, at every depth."""
    one: tuple[object, ...] = cls(
        **{
            name: filled(NESTED[name]) if name in NESTED else torch.rand(2)
            for name in cls._fields  # type: ignore[attr-defined]
        }
    )
    return one


def tensors(value: object) -> list[Tensor]:
    """Every tensor, by a plain walk."""
    if isinstance(value, Tensor):
        return [value]
    assert isinstance(value, tuple)
    return [tensor for part in value for tensor in tensors(part)]


@pytest.mark.parametrize("cls", CLASSES)
def test_zero_3_reaches_every_tensor_and_keeps_the_class(cls: type):
    # A class that DeepSpeed does not look into leaves its layer's parameters divided in backward.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from deepspeed.runtime.zero.utils import apply_to_tensors_only

    one, seen = filled(cls), []

    def visit(tensor: Tensor) -> Tensor:
        seen.append(tensor)
        return tensor + 1

    changed = apply_to_tensors_only(visit, one)
    assert [id(tensor) for tensor in seen] == [id(tensor) for tensor in tensors(one)]
    assert type(changed) is cls
    for before, after in zip(tensors(one), tensors(changed), strict=True):
        torch.testing.assert_close(after, before + 1)


@pytest.mark.parametrize("cls", CLASSES)
def test_nothing_is_changed_after_it_was_made(cls: type):
    one = filled(cls)
    with pytest.raises(AttributeError):
        setattr(one, cls._fields[0], torch.ones(1))  # type: ignore[attr-defined]


def test_what_a_model_may_lack_is_none_by_default():
    inputs = ForecastInputs(context=torch.zeros(1, 4, 1))
    assert inputs.prompt_ids is None
    assert inputs.prompt_mask is None
    forecast, *optional = ForecastOutput(forecast=torch.zeros(1, 2, 1))
    assert forecast.shape == (1, 2, 1)
    assert optional == [None] * 5
    trend = TrendPrediction(direction=torch.zeros(1, 3), magnitude=torch.zeros(1, 4))
    assert trend.change is None


def test_retrieved_windows_are_complete():
    with pytest.raises(TypeError, match="valid"):
        RetrievedWindows(  # type: ignore[call-arg]
            windows=torch.zeros(1, 1, 4), futures=torch.zeros(1, 1, 2), ids=torch.zeros(1, 1)
        )
