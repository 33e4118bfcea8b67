"""What a frozen backbone costs each rank: ZeRO-3 holds a share of it from the moment it loads."""

import ctypes
import gc
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from dist_train import distributed, engine
from dist_train.build import build_forecaster
from dist_train.config import DeepSpeedConfig, RunConfig
from model.backbone_files import locate_backbone
from model.config import BackboneConfig, GramConfig, TaprConfig
from tests.helpers.backbones import tiny_backbone
from tests.helpers.ranks import run_ranks
from tests.helpers.runs import tiny_run

pytestmark = [pytest.mark.slow, pytest.mark.ranks]

LAYERS, WIDTH = 24, 512
MIB = 2**20


def watermark(name: str) -> float:
    """A line of /proc/self/status, in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {name}")


def release() -> None:
    """Give back to the machine what was freed."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def held_mib(module: nn.Module) -> float:
    """What this rank holds of a module's parameters: all of them, or its shards."""
    return sum(getattr(p, "ds_tensor", p).nbytes for p in module.parameters()) / MIB


def measure(rank: int, world_size: int, configs: list[RunConfig]) -> None:
    """Load one backbone after the other; write what each cost this rank."""
    engine.prepare()
    for config in configs:
        settings = engine.deepspeed_json(config, world_size, torch.float32)
        files = locate_backbone(config.backbone.name)
        release()
        anonymous = watermark("RssAnon")  # files that are mapped count only where they are shared
        model = build_forecaster(config, files, torch.float32, zero3=engine.partition_of(settings))
        release()
        anonymous = watermark("RssAnon") - anonymous
        loaded = held_mib(model.backbone)
        ds_engine = engine.initialize(model, config, settings, total_steps=1)
        held = held_mib(model.backbone)
        found = {"anonymous": anonymous, "loaded": loaded, "held": held}
        path = Path(config.runs_dir) / f"{config.name}-{rank}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(found))
        ds_engine.close()
        distributed.barrier()


@pytest.mark.parametrize("in_4bit", [False, True])
def test_each_rank_holds_its_share_of_a_partitioned_backbone(tmp_path: Path, in_4bit: bool):
    base = tiny_run(tmp_path, tapr=TaprConfig(use_tapr=False), gram=GramConfig(use_gram=False))
    base = replace(base, model=replace(base.model, prompt="none"))

    def with_backbone(name: str, num_layers: int, width: int, stage: int) -> RunConfig:
        folder = str(tiny_backbone("llama", num_layers, width))
        backbone = BackboneConfig(name=folder, llm_layers=num_layers, load_in_4bit=in_4bit)
        return replace(
            base, name=name, backbone=backbone, deepspeed=DeepSpeedConfig(zero_stage=stage)
        )

    # The first of each kind pays for what is imported.
    first = [with_backbone(f"first{stage}", 2, 64, stage) for stage in (2, 3)]
    configs = [with_backbone(f"stage{stage}", LAYERS, WIDTH, stage) for stage in (2, 3)]
    run_ranks(measure, 2, [*first, *configs])
    whole, share = (
        [json.loads((tmp_path / f"runs/stage{n}-{rank}.json").read_text()) for rank in (0, 1)]
        for n in (2, 3)
    )
    for rank in (0, 1):
        assert share[rank]["held"] == pytest.approx(whole[rank]["held"] / 2, rel=0.01)
        assert share[rank]["loaded"] == pytest.approx(whole[rank]["held"] / 2, rel=0.01)
    assert all(found["anonymous"] < 0.95 * whole[0]["held"] for found in share)
