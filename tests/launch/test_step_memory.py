"""The step without memory: the same tensors come and go as in a real one."""

import dataclasses
import json
from itertools import pairwise
from typing import Any

import pytest
import torch

from dist_train.config import RunConfig, TrainConfig
from dist_train.data.config import DataConfig
from dist_train.process_memory import measure
from dist_train.shapes import PUBLISHED
from launch import step_memory as module
from launch.step_memory import StepMemory, random_batch, step_memory, total_of
from model.backbone_files import locate_backbone
from model.backbone_loading import load_backbone
from model.config import BackboneConfig, GramConfig, LoraConfig, ModelConfig, TaprConfig
from model.forecaster import Forecaster
from tests.helpers.backbones import tiny_backbone

MODEL = ModelConfig(d_model=12, d_ff=16, n_heads=2, num_prototypes=30, max_prompt_tokens=20)


def run_config(name: str, layers: int = 2, **sections: Any) -> RunConfig:
    chosen = {
        "data": DataConfig(seq_len=96, pred_len=24),
        "model": MODEL,
        "gram": GramConfig(use_gram=True, d_repr=8),
        "backbone": BackboneConfig(name=name, llm_layers=layers),
        "train": TrainConfig(eval_batch_size=5),
        **sections,
    }
    return RunConfig(**chosen)


def counted_for_real(config: RunConfig, variates: int, size: int) -> StepMemory:
    """Count the tensors of a real step with the same counter."""
    backbone = load_backbone(config.backbone, locate_backbone(config.backbone.name))
    model = Forecaster(config.model, config.data.seq_len, config.data.pred_len, backbone,
                       tapr=config.tapr, gram=config.gram).train()  # fmt: skip
    model.words()  # makes the basis
    if model.trend is not None:
        model.trend.thresholds.fit(torch.randn(100))
        model.trend.thresholds._known_fitted = True
    counter = module._LiveTensors()
    counter.leave_out(model)
    for parameter in model.trained_parameters().values():
        parameter.register_post_accumulate_grad_hook(counter.take_gradient)
    batch = random_batch(config, variates, size)
    with counter:
        output = model(*batch)
        total_of(output).backward()
    training, gradients = counter.peak, counter.gradients_at_peak
    del output
    model.eval()
    counter = module._LiveTensors()
    counter.leave_out(model)
    inputs, retrieved, _ = random_batch(config, variates, config.train.eval_batch_size)
    with counter, torch.no_grad():
        model(inputs, retrieved)
    return StepMemory(training=training, gradients_then=gradients, evaluation=counter.peak)


CASES: dict[str, dict[str, Any]] = {
    "default": {},
    "bare": {"tapr": TaprConfig(use_tapr=False), "gram": GramConfig(use_gram=False)},
    "prefix_cached": {"model": dataclasses.replace(MODEL, token_order="prefix_cached")},
    "vocabulary": {"model": dataclasses.replace(MODEL, prototype_map="vocabulary")},
    "no prompt": {"model": dataclasses.replace(MODEL, prompt="none")},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_fake_tensors_take_what_real_ones_take(case: str, architecture: Any):
    name = str(tiny_backbone(architecture))
    config = run_config(name, **CASES[case])
    fake = step_memory(config, locate_backbone(name).config, 2, 3, "fp32")
    real = counted_for_real(config, 2, 3)
    assert fake.training == pytest.approx(real.training, rel=0.01)
    assert fake.evaluation == pytest.approx(real.evaluation, rel=0.01)


@pytest.mark.parametrize("settings", [
    {}, {"activation_checkpointing": True}, {"lora": LoraConfig(r=2)},
], ids=["plain", "checkpointing", "lora"])  # fmt: skip
def test_further_blocks_are_extrapolated_exactly(settings: dict[str, Any]):
    content = json.loads((tiny_backbone("llama", 9) / "config.json").read_text())
    config = run_config("any", 9)
    backbone = dataclasses.replace(config.backbone, **settings)
    config = dataclasses.replace(config, backbone=backbone)
    assert step_memory(config, content, 2, 8, "bf16") == module._simulate(
        config, content, 2, 8, torch.bfloat16
    )


def test_recomputing_blocks_saves_most_of_them():
    content = PUBLISHED["openai-community/gpt2"]
    config = run_config("any", 12)
    kept = step_memory(config, content, 2, 8, "fp32")
    backbone = dataclasses.replace(config.backbone, activation_checkpointing=True)
    recomputed = step_memory(dataclasses.replace(config, backbone=backbone), content, 2, 8, "fp32")
    assert recomputed.training < kept.training / 3


def test_activations_grow_with_the_batch():
    content = PUBLISHED["openai-community/gpt2"]
    sizes = [step_memory(run_config("any", 3), content, 2, size, "fp32") for size in (8, 16, 32)]
    grown = [later.training - earlier.training for earlier, later in pairwise(sizes)]
    assert grown[1] == pytest.approx(2 * grown[0], rel=0.01)


def test_seventy_billion_weights_take_no_memory():
    content = PUBLISHED["meta-llama/Llama-3.1-70B"]
    step_memory(run_config("any", 2), content, 2, 2, "bf16")  # what is imported at first use
    before = measure().resident
    found = step_memory(run_config("any", 80), content, 2, 4, "bf16")
    assert measure().resident - before < 200 * 2**20
    assert found.training > 2**30


def test_what_makes_no_difference_is_counted_once(monkeypatch: pytest.MonkeyPatch):
    content = PUBLISHED["openai-community/gpt2"]
    first = step_memory(run_config("any"), content, 2, 7, "fp32")
    monkeypatch.setattr(module, "_simulate", None)
    packed = dataclasses.replace(run_config("other").backbone, load_in_4bit=True)
    again = dataclasses.replace(run_config("other"), backbone=packed, name="again")
    assert step_memory(again, content, 2, 7, "fp32") is first
