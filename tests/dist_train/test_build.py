"""dist_train/build.py: the seed decides the weights, the configuration decides the prompt."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dist_train import build
from dist_train.build import build_forecaster, build_prompt_builder
from dist_train.config import RunConfig
from dist_train.memory_account import MemoryAccount
from model.backbone_files import BackboneFiles, locate_backbone
from model.backbone_loading import load_backbone
from tests.helpers.runs import tiny_run
from tests.helpers.sources import run_over_sources, with_a_shorter_horizon


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return tiny_run(tmp_path)


def located(config: RunConfig) -> BackboneFiles:
    return locate_backbone(config.backbone.name)


def weights(config: RunConfig, seed: int) -> dict[str, Tensor]:
    config = replace(config, train=replace(config.train, seed=seed))
    return build_forecaster(config, located(config), torch.float32).state_dict()


def test_the_same_seed_gives_the_same_weights(config: RunConfig):
    first = weights(config, 1)
    torch.rand(7)  # whatever was drawn before does not matter
    second = weights(config, 1)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_another_seed_gives_other_weights_and_the_same_backbone(config: RunConfig):
    first, second = weights(config, 1), weights(config, 2)
    for name, value in first.items():
        if name.startswith("backbone."):
            assert torch.equal(value, second[name]), name
    assert not torch.equal(first["prototypes.mapping.weight"], second["prototypes.mapping.weight"])


def test_the_backbone_is_the_one_on_disk_and_frozen(config: RunConfig):
    model = build_forecaster(config, located(config), torch.float32)
    expected = load_backbone(config.backbone, located(config)).state_dict()
    found = model.get_submodule("backbone").state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    trained = [name for name, value in model.named_parameters() if value.requires_grad]
    assert trained
    assert not [name for name in trained if name.startswith("backbone.")]


def test_the_backbone_has_the_compute_type_and_the_trained_parameters_float32(config: RunConfig):
    model = build_forecaster(config, located(config), torch.bfloat16)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.dtype == torch.float32, name
        elif parameter.ndim == 2:  # the backbone's matrices
            assert parameter.dtype == torch.bfloat16, name


def test_no_prompt_needs_no_builder(config: RunConfig):
    config = replace(config, model=replace(config.model, prompt="none"))
    assert build_prompt_builder(config, located(config), ["a series"]) is None


def test_a_full_prompt_tells_the_description_and_the_task(config: RunConfig):
    full = replace(config.model, prompt="full", max_prompt_tokens=500)
    config = replace(config, model=full)
    told, untold = (
        build_prompt_builder(config, located(config), [text]) for text in ("Wind in Oslo", "")
    )
    assert told is not None
    assert untold is not None
    context = torch.linspace(0, 1, 48).reshape(1, 48, 1).numpy()
    told_ids, told_mask = told(context)
    untold_ids, _ = untold(context)
    assert told_ids.shape == told_mask.shape
    assert told_ids.shape[1] > untold_ids.shape[1]


@pytest.mark.parametrize(
    ("name", "phase"), [("load_backbone", "backbone"), ("Forecaster", "layers")]
)
def test_memory_of_backbone_and_layers_is_counted_apart(
    name: str, phase: str, config: RunConfig, monkeypatch: pytest.MonkeyPatch
):
    def refuse(*arguments: object, **options: object) -> None:
        raise MemoryError

    counted = MemoryAccount()
    monkeypatch.setattr(build, "account", counted)
    monkeypatch.setattr(build, name, refuse)
    with pytest.raises(MemoryError) as caught:
        build_forecaster(config, located(config), torch.float32)
    failed = counted.failed_phase(caught.value)
    assert failed is not None
    assert failed.name == phase


def test_the_prompt_of_a_source_tells_its_own_horizon(tmp_path: Path):
    config = with_a_shorter_horizon(run_over_sources(tmp_path), steps=5)
    context = np.zeros((1, config.data.seq_len, 1), dtype=np.float32)
    found = {}
    for steps, whole in {"own": config, "common": run_over_sources(tmp_path)}.items():
        builder = build_prompt_builder(whole, located(whole), ["a", "a", "a"])
        assert builder is not None
        prompts = [builder(context, [source]) for source in range(3)]
        found[steps] = [one[0].tolist() for one in prompts if one is not None]
    assert found["own"][0] == found["own"][2] == found["common"][1]
    assert found["own"][1] != found["common"][1]
