"""Time a few steps of a run on this machine: for a plan whose rate nobody has to guess."""

import statistics
import time
from dataclasses import dataclass, replace

import torch

from dist_train.build import build_forecaster
from dist_train.config import RunConfig
from dist_train.distributed import device
from dist_train.optim import build_optimizer
from dist_train.process_memory import measure
from launch.step_memory import DTYPES, random_batch, total_of
from model.backbone_files import locate_backbone

STEPS = 3


@dataclass(frozen=True, kw_only=True)
class MeasuredStep:
    """What was measured of one rank without collectives."""

    step_s: float
    """Seconds of forward, backward and update of one micro-batch; the median after the first."""

    device: str
    gpu_bytes: int
    """The most that torch had allocated on the GPU; 0 on a CPU."""


def measure_step(
    config: RunConfig, num_variates: int, micro_batch: int, precision: str
) -> MeasuredStep:
    """Train a few micro-batches of random windows, without DeepSpeed.

    Args:
        config: The run; its backbone has to be on disk.
        num_variates: Rows of a window.
        micro_batch: Windows per pass.
        precision: bf16, fp16 or fp32.

    Raises:
        ValueError: The backbone is not here.
    """
    dtype, where = DTYPES[precision], device()
    gram = replace(config.gram, use_gram=config.gram.use_gram is not False)  # auto counts as on
    config = replace(config, gram=gram)
    files = locate_backbone(config.backbone.name, kind=config.backbone.kind)
    model = build_forecaster(config, files, dtype, num_variates=num_variates)
    model = model.to(where, dtype).train()
    if model.trend is not None:
        model.trend.thresholds.fit(torch.randn(1000))
    optimizer = build_optimizer(model, config.train)
    inputs, retrieved, target = random_batch(config, num_variates, micro_batch, where)
    times = []
    for _ in range(1 + STEPS):
        began = time.perf_counter()
        total_of(model(inputs, retrieved, target)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        if where.type == "cuda":
            torch.cuda.synchronize(where)
        times.append(time.perf_counter() - began)
    return MeasuredStep(
        step_s=statistics.median(times[1:]), device=str(where), gpu_bytes=measure().gpu
    )
