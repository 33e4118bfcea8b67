"""dist_train/throughput.py: tokens as the model reads them, operations as a plan counts them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dist_train.build import build_forecaster, build_prompt_builder
from dist_train.config import RunConfig
from dist_train.data.collate import Collator, WindowBatch
from dist_train.data.windows import load_forecast_data
from dist_train.flops import MicroBatch, micro_batch_flops, total_flops
from dist_train.objective import Work
from dist_train.shapes import shape_of
from dist_train.throughput import Throughput
from model.backbone import Backbone
from model.backbone_files import BackboneFiles, locate_backbone
from model.config import GramConfig
from tests.helpers.runs import tiny_run


def batch_of(config: RunConfig, files: BackboneFiles) -> tuple[WindowBatch, int]:
    data = load_forecast_data(config.data)
    builder = build_prompt_builder(config, files, ["a description"])
    common = 0 if builder is None else len(builder.prefix_ids)
    return Collator(data.windows["train"], builder)([0, 5, 9]), common


@pytest.mark.parametrize("order", ["spec", "prefix_cached"])
def test_tokens_are_those_that_the_language_model_reads(
    tmp_path: Path, order: str, monkeypatch: pytest.MonkeyPatch
):
    config = tiny_run(tmp_path, gram=GramConfig(use_gram=False))
    config = replace(config, model=replace(config.model, token_order=order, prompt="full"))
    files = locate_backbone(config.backbone.name)
    batch, common = batch_of(config, files)
    assert batch.prompt_mask is not None
    assert not batch.prompt_mask.all()  # some rows are padded
    builder = build_prompt_builder(config, files, ["a description"])
    model = build_forecaster(config, files, torch.float32, builder)
    read: list[int] = []
    forward, ahead = Backbone.forward, Backbone.read

    def count(inputs: torch.Tensor, mask: torch.Tensor | None) -> None:
        whole = inputs.shape[0] * inputs.shape[1]
        read.append(whole if mask is None else int(mask[:, -inputs.shape[1] :].sum()))

    def counted(self: Backbone, inputs: torch.Tensor, mask: object = None, *rest: object) -> object:
        count(inputs, mask)  # type: ignore[arg-type]
        return forward(self, inputs, mask, *rest)  # type: ignore[arg-type]

    def counted_ahead(
        self: Backbone, inputs: torch.Tensor, mask: object = None, *rest: object
    ) -> object:
        count(inputs, mask)  # type: ignore[arg-type]
        return ahead(self, inputs, mask, *rest)  # type: ignore[arg-type]

    with torch.no_grad():
        model(batch.inputs)  # what all prompts begin with is read once, here
        monkeypatch.setattr(Backbone, "forward", counted)
        monkeypatch.setattr(Backbone, "read", counted_ahead)
        model(batch.inputs)
    meter = Throughput(config, files, torch.float32, common_tokens=common)
    assert meter.work_of(batch).tokens == sum(read)


def test_operations_are_those_of_a_plan(tmp_path: Path):
    config = tiny_run(tmp_path)
    files = locate_backbone(config.backbone.name)
    batch, _ = batch_of(config, files)
    assert batch.prompt_mask is not None
    expected = total_flops(
        micro_batch_flops(
            config,
            shape_of(files.config, 2),
            MicroBatch(windows=3, variates=2, prompt_tokens=batch.prompt_mask.shape[1]),
        )
    )
    meter = Throughput(config, files, torch.float32)
    assert meter.work_of(batch).flops == expected > 0


def test_rates_are_per_second_and_the_share_is_of_all_devices(tmp_path: Path):
    config = tiny_run(tmp_path)
    files = locate_backbone(config.backbone.name)
    meter = Throughput(config, files, torch.bfloat16, device_name="NVIDIA H100 80GB HBM3")
    work = Work(tokens=500, flops=989e12)
    assert meter.rates(work, seconds=2.0, ranks=4) == {
        "perf/tokens_per_s": 250.0, "perf/tflop_per_s": 494.5, "perf/peak_percent": 12.5,
    }  # fmt: skip
    for other in (
        Throughput(config, files, torch.float32, device_name="NVIDIA H100 80GB HBM3"),
        Throughput(config, files, torch.bfloat16, device_name="Some GPU"),
        Throughput(config, files, torch.bfloat16),
    ):
        assert "perf/peak_percent" not in other.rates(work, seconds=2.0, ranks=4)


def test_an_architecture_that_is_not_known_has_no_operations(tmp_path: Path):
    config = tiny_run(tmp_path)
    files = locate_backbone(config.backbone.name)
    files = replace(files, config={**files.config, "model_type": "mamba"})
    batch, _ = batch_of(config, files)
    work = Throughput(config, files, torch.float32).work_of(batch)
    assert work.flops == 0
    assert "perf/tflop_per_s" not in Throughput(config, files, torch.float32).rates(work, 1.0, 1)
