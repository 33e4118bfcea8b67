"""What a plan is asked for: its command line, and what that means. Free of torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from dist_train.config import ConfigError, RunConfig, build_parser, parse_run_config
from dist_train.shapes import PUBLISHED, BackboneShape, shape_of
from launch.hardware import HARDWARE
from launch.memory_plan import Device
from model.backbone_files import locate_backbone
from model.config import LANGUAGE_MODELS
from model.embedded_backbone import EMBEDDED_NAME

EMBEDDED_AS = "HuggingFaceTB/SmolLM2-135M"
MOST_RANKS = 65536
GIB = 2**30

GPU_RUNTIME_GIB = 1.0
"""Assumed: CUDA's context and its libraries; --runtime_gib says what is true."""

CPU_RUNTIME_GIB = 0.5
"""Resident memory of a training process before it builds anything, pages of libraries and the code
of compiled kernels included: 0.42 to 0.5 GiB where benchmarks.plan_memory ran."""

DESCRIPTION = """Say what a run needs, by part, before it is started: memory of each rank for every
ZeRO stage, size and exchange of the memory bank, time; and settings that fit a given GPU. Takes
every key of a configuration too."""


@dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """What the command line says beside the configuration."""

    gpus: tuple[int, ...]
    """Ranks; more than one number for a table."""

    is_range: bool
    """Whether it was a range: then the micro-batch is kept and the batch grows with the ranks."""

    device: Device
    gpu_memory_gib: float | None
    gpus_per_node: int
    hardware: str | None
    flops: float | None
    measure: bool
    runtime_gib: float
    num_variates: int | None
    num_rows: int | None
    bank_entries: int | None
    backbones: bool
    json: bool


def read_request(argv: Sequence[str]) -> tuple[RunConfig, PlanRequest]:
    """Read the command line of ``timellm plan``.

    Raises:
        ConfigError: A key, or an option, that cannot be used.
    """
    parser = build_parser("timellm plan")
    parser.description = DESCRIPTION
    add = parser.add_argument
    add("--gpus", type=str, default="1",
        help="Ranks: N, or FIRST..LAST: a table in powers of two, at one micro-batch.")  # fmt: skip
    add("--gpu_memory_gib", type=float, help="Memory of one GPU: recommends settings that fit.")
    add("--gpus_per_node", type=int, default=8, help="Ranks of one node.")
    add("--device", type=str, choices=["auto", "cpu", "gpu"], default="auto",
        help="auto: gpu where one is spoken of or here, else cpu.")  # fmt: skip
    add("--hardware", type=str, choices=sorted(HARDWARE), help="Rates and memory of a GPU.")
    add("--flops", type=float, help="FLOP/s that one rank achieves, instead of the hardware's.")
    add("--measure", action="store_true", help="Time a few steps of this run on this machine.")
    add("--runtime_gib", type=float, help="What the libraries take before anything is built.")
    add("--num_variates", type=int, help="With --num_rows: the data's size, nothing is read.")
    add("--num_rows", type=int, help="With --num_variates: rows of the series.")
    add("--bank_entries", type=int, help="Entries of the bank, instead of the data's.")
    add("--backbones", action="store_true", help="A table of language models up to 72 B; a minute.")
    add("--json", action="store_true", help="One JSON object as the last line.")
    config, further = parse_run_config(parser, argv)
    return config, _request(further)


def find_backbone(config: RunConfig) -> tuple[BackboneShape, Mapping[str, Any]]:
    """Shape and config.json of a run's backbone: published models need no file.

    Raises:
        ValueError: It is neither known nor on disk, or has fewer blocks.
    """
    name = config.backbone.name
    known = EMBEDDED_AS if name == EMBEDDED_NAME else name
    layers = config.backbone.llm_layers if config.backbone.kind in LANGUAGE_MODELS else 1
    if known in PUBLISHED:
        return shape_of(PUBLISHED[known], layers, name), PUBLISHED[known]
    try:
        files = locate_backbone(name, kind="random")  # its config.json is enough
    except ValueError as error:
        raise ConfigError(
            f"{error} A plan also knows, without a file: {', '.join(sorted(PUBLISHED))}."
        ) from error
    return shape_of(files.config, layers, name), files.config


def _request(further: Mapping[str, Any]) -> PlanRequest:
    for key in ("gpu_memory_gib", "flops", "runtime_gib"):
        value = further[key]
        if value is not None and not (isfinite(value) and value > 0):
            raise ConfigError(f"--{key}={value}: must be a positive number.")
    for key in ("gpus_per_node", "num_variates", "num_rows", "bank_entries"):
        value = further[key]
        if value is not None and not 1 <= value <= 10**12:
            raise ConfigError(f"--{key}={value}: must be a whole number from 1 on.")
    if further["measure"] and further["flops"] is not None:
        raise ConfigError("--measure and --flops both say how fast a rank is: give one of them.")
    gpus, is_range = _gpus(further["gpus"])
    hardware, memory = further["hardware"], further["gpu_memory_gib"]
    device = further["device"]
    if device == "cpu" and (hardware is not None or memory is not None):
        raise ConfigError(
            "--device=cpu: --hardware and --gpu_memory_gib are of GPUs: leave it out."
        )
    if device == "auto":
        spoken_of = hardware is not None or memory is not None or max(gpus) > 1
        device = "gpu" if spoken_of or _has_gpu() else "cpu"
    default = GPU_RUNTIME_GIB if device == "gpu" else CPU_RUNTIME_GIB
    return PlanRequest(
        gpus=gpus,
        is_range=is_range,
        device=device,
        gpu_memory_gib=memory or (HARDWARE[hardware].memory_gib if hardware else None),
        gpus_per_node=further["gpus_per_node"],
        hardware=hardware,
        flops=further["flops"],
        measure=further["measure"],
        runtime_gib=further["runtime_gib"] or default,
        num_variates=further["num_variates"],
        num_rows=further["num_rows"],
        bank_entries=further["bank_entries"],
        backbones=further["backbones"],
        json=further["json"],
    )


def _gpus(text: str) -> tuple[tuple[int, ...], bool]:
    first, dots, last = text.partition("..")
    try:
        begin, end = int(first), int(last) if dots else int(first)
    except ValueError:
        begin = end = 0
    if not 1 <= begin <= end <= MOST_RANKS:
        raise ConfigError(
            f"--gpus={text!r:.40}: give a number of ranks, or a range such as 1..1024, of at most "
            f"{MOST_RANKS}."
        )
    counts = [begin]
    while counts[-1] * 2 <= end:
        counts.append(counts[-1] * 2)
    return tuple(counts), bool(dots)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
