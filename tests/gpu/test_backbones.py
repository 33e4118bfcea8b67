"""Backbones on one CUDA device: 4 bits, LoRA, flash attention, under ZeRO 2 and 3."""

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from dist_train.config import DeepSpeedConfig
from model.config import BackboneConfig, GramConfig, LoraConfig, TaprConfig
from tests.gpu.test_training import train
from tests.helpers.backbones import load_tiny, tiny_backbone
from tests.helpers.runs import STEPS, losses, tiny_run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]

WIDE = 64


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "settings",
    [{"load_in_4bit": True}, {"lora": LoraConfig(r=4)},
     {"load_in_4bit": True, "lora": LoraConfig(r=4)}, {"activation_checkpointing": True}],
    ids=["4-bit", "LoRA", "4-bit and LoRA", "recomputed"],
)  # fmt: skip
def test_trains_like_the_cpu(tmp_path: Path, stage: int, precision: str, settings: dict[str, Any]):
    name = str(tiny_backbone("llama", width=WIDE))
    base = tiny_run(
        tmp_path,
        backbone=BackboneConfig(name=name, llm_layers=2, **settings),
        deepspeed=DeepSpeedConfig(zero_stage=stage),
        tapr=TaprConfig(use_tapr=False),
        gram=GramConfig(use_gram=False),
    )
    base = replace(base, train=replace(base.train, precision=precision))
    gpu = train(replace(base, name="gpu"), on_gpu=True)
    cpu = train(replace(base, name="cpu"), on_gpu=False)
    assert len(losses(gpu)) == STEPS
    assert losses(gpu) == pytest.approx(losses(cpu), abs=5e-3 if precision == "fp32" else 5e-2)


@pytest.mark.skipif(find_spec("flash_attn") is None, reason="flash_attn is not installed")
@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen2", "mistral"])
def test_flash_attention_equals_sdpa(kind: Any):
    tokens = torch.randn(2, 9, WIDE, device="cuda", dtype=torch.bfloat16)
    mask = torch.ones(2, 9, dtype=torch.bool, device="cuda")
    mask[0, :4] = False
    found = [
        load_tiny(kind, width=WIDE, dtype=torch.bfloat16, attention=attention).cuda()(tokens, mask)
        for attention in ("sdpa", "flash_attention_2")
    ]
    assert (found[0] - found[1])[mask].norm() < 0.02 * found[0][mask].norm()
