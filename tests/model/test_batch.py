"""model/batch.py: keyword-only, frozen, and visible to an engine that looks for tensors."""

import dataclasses

import pytest
import torch

from model import batch
from model.batch import ForecastInputs, ForecastOutput, RetrievedWindows, TrendPrediction

CLASSES = [ForecastInputs, RetrievedWindows, TrendPrediction, ForecastOutput]


def filled(cls: type) -> object:
    return cls(**{field.name: torch.zeros(1) for field in dataclasses.fields(cls)})


def test_every_class_of_the_border_is_tested_here():
    known = [one for one in vars(batch).values() if dataclasses.is_dataclass(one)]
    assert known == CLASSES


@pytest.mark.parametrize("cls", CLASSES)
def test_vars_shows_every_tensor(cls: type):
    # ZeRO-3 finds the tensors of a module's output with vars; slots would hide them.
    names = {field.name for field in dataclasses.fields(cls)}
    assert vars(filled(cls)).keys() == names


@pytest.mark.parametrize("cls", CLASSES)
def test_nothing_is_changed_after_it_was_made(cls: type):
    one = filled(cls)
    name = dataclasses.fields(cls)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(one, name, torch.ones(1))


@pytest.mark.parametrize("cls", CLASSES)
def test_tensors_are_given_by_name(cls: type):
    with pytest.raises(TypeError, match="positional"):
        cls(torch.zeros(1))


def test_what_a_model_may_lack_is_none_by_default():
    inputs = ForecastInputs(context=torch.zeros(1, 4, 1))
    assert inputs.prompt_ids is None
    assert inputs.prompt_mask is None
    optional = vars(ForecastOutput(forecast=torch.zeros(1, 2, 1)))
    assert {name for name, value in optional.items() if value is not None} == {"forecast"}
    trend = TrendPrediction(direction=torch.zeros(1, 3), magnitude=torch.zeros(1, 4))
    assert trend.change is None


def test_retrieved_windows_are_complete():
    with pytest.raises(TypeError, match="valid"):
        RetrievedWindows(  # type: ignore[call-arg]
            windows=torch.zeros(1, 1, 4), futures=torch.zeros(1, 1, 2), ids=torch.zeros(1, 1)
        )
