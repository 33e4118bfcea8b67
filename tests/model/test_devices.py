"""The model on a device that is not the CPU: nothing is left behind, and nothing waits for it."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException

from model.config import LoraConfig
from model.forecaster import Forecaster
from tests.helpers.backbones import Kind, load_tiny
from tests.helpers.pretended_device import NAME, PretendedDevice
from tests.helpers.ranks import run_ranks
from tests.model.test_enhanced_forecaster import (
    GRAM,
    SMALL,
    TAPR,
    B,
    H,
    L,
    N,
    inputs_of,
    loss_of,
    retrieve,
)  # fmt: skip

pytestmark = pytest.mark.ranks


def train_step(
    _rank: int, _world_size: int, kind: Kind, lora: bool, settings: dict[str, Any]
) -> None:
    config = replace(SMALL, **settings)
    backbone = load_tiny(kind, lora=LoraConfig(r=2 if lora else 0))
    model = Forecaster(
        config, L, H, backbone, tapr=TAPR, gram=GRAM, prompt_prefix=torch.arange(3),
        num_sources=1 if config.individual else 2, num_variates=N,
    )  # fmt: skip
    inputs, retrieved, target = inputs_of(), retrieve(), torch.zeros(B, H, N)
    inputs = inputs._replace(
        calendar_phase=torch.zeros(B, 4), sources=torch.ones(B, dtype=torch.int64)
    )
    model(inputs, retrieved, target)  # what is made once was made before the model moved

    device = PretendedDevice()
    device.put_module(model)
    inputs, retrieved = (
        type(batch)(*(device.put(t) if isinstance(t, torch.Tensor) else t for t in batch))
        for batch in (inputs, retrieved)
    )
    target = device.put(target)
    with device:
        output = model(inputs, retrieved, target)
        loss_of(output, target, retrieved).backward()
    trained = model.trained_parameters()
    places = {p.grad.device.type for p in trained.values() if p.grad is not None}
    assert output.forecast.device.type == NAME
    assert places == {NAME}
    assert sum(p.grad is not None for p in trained.values()) > 0.9 * len(trained)


@pytest.mark.parametrize(
    ("kind", "lora", "settings"),
    [
        ("gpt2", False, {"anchor": "ridge_retrieval"}),
        ("llama", False, {"token_order": "prefix_cached", "anchor": "ridge"}),
        ("qwen2", True, {"token_order": "prefix_cached", "anchor": "none"}),
        ("bert", False, {"prototype_map": "vocabulary", "norm": "last"}),
        ("mistral", True, {"anchor_calendar": "year"}),
        ("gpt2", False, {"anchor_calendar": "day"}),
        ("gpt2", False, {"anchor_calendar": "day", "anchor_weights": "individual"}),
        ("gpt2", False, {"anchor_calendar": "day", "anchor_random_features": 16}),
    ],
)
def test_a_training_step_stays_on_its_device(kind: Kind, lora: bool, settings: dict[str, Any]):
    run_ranks(train_step, 1, kind, lora, settings)


def refuse(_rank: int, _world_size: int) -> None:
    """What the test above relies on."""
    device = PretendedDevice()
    there = device.put(torch.zeros(2, 3))
    with device:
        with pytest.raises(RuntimeError, match="device"):
            there + torch.zeros(3)
        with pytest.raises(DataDependentOutputException):
            there.sum().item()
        with pytest.raises(DataDependentOutputException):
            bool(there.any())


def test_the_pretended_device_refuses_what_a_gpu_would():
    run_ranks(refuse, 1)
