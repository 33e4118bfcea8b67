"""Every combination of ZeRO stage, precision, 4-bit, LoRA and ranks, and the table of them.

``python -m tests.integration.test_compatibility`` runs every cell and writes the table anew.
"""

import json
import sys
import tempfile
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

import pytest

from dist_train import baselines, preflight, report
from dist_train.config import DeepSpeedConfig, RunConfig
from dist_train.session import train_and_score
from model.config import BackboneConfig, GramConfig, LoraConfig, TaprConfig
from tests.helpers.backbones import tiny_backbone
from tests.helpers.ranks import run_ranks
from tests.helpers.runs import losses, tiny_run

pytestmark = pytest.mark.ranks

STEPS = 4
STAGES, RANKS = (0, 1, 2, 3), (1, 2)
PRECISIONS: tuple[Literal["fp32", "bf16"], ...] = ("fp32", "bf16")
VARIANTS = {"whole": (False, 0), "LoRA": (False, 4), "4-bit": (True, 0), "4-bit + LoRA": (True, 4)}
# Of a loss near 1. In bf16 the gradients of two ranks are rounded before they are added.
TOLERANCE = {"fp32": 1e-5, "bf16": 5e-3}
TABLE = Path(__file__).parents[2] / "docs/compatibility.md"


def cell(folder: Path, variant: str, precision: str, stage: int, ranks: int) -> RunConfig:
    """Configure the run of one cell: a LLaMA of two blocks, the plain Time-LLM around it."""
    in_4bit, r = VARIANTS[variant]
    # Blocks of 64 numbers share a scale in 4 bits, so the layers must be wider than usual here.
    name = str(tiny_backbone("llama", width=64))
    base = tiny_run(
        folder,
        name=f"{variant.replace(' + ', '-')}-{precision}-{stage}-{ranks}",
        backbone=BackboneConfig(
            name=name, llm_layers=2, load_in_4bit=in_4bit, lora=LoraConfig(r=r)
        ),
        tapr=TaprConfig(use_tapr=False),
        gram=GramConfig(use_gram=False),
        deepspeed=DeepSpeedConfig(zero_stage=stage),
    )
    train = replace(base.train, max_steps=STEPS, precision=precision, eval_batch_size=256)
    return replace(base, train=train, model=replace(base.model, anchor="none"))


def train_cells(rank: int, world_size: int, configs: list[RunConfig]) -> None:
    """Train one run after the other; what one raises is written into its folder."""
    baselines.fit_dlinear = lambda data, seed: baselines.repeat_last  # type: ignore[assignment]
    report.draw_figures = lambda *given: {}
    for config in configs:
        try:
            train_and_score(config, preflight.check(config))
        except Exception as error:
            (config.run_folder / "failure.txt").write_text(f"{type(error).__name__}: {error}")


def verdict(config: RunConfig, reference: RunConfig) -> str:
    """``yes``, or what is wrong with a cell."""
    failure = config.run_folder / "failure.txt"
    if failure.exists():
        return failure.read_text()
    found, wanted = losses(config.run_folder), losses(reference.run_folder)
    difference = max(abs(a - b) for a, b in zip(found, wanted, strict=True))
    if difference <= TOLERANCE[config.train.precision]:
        return "yes"
    return f"losses differ by {difference:.1e} from one rank"


def reference_stage(precision: str, stage: int) -> int:
    """The stage whose run on one rank a cell has to equal.

    In bf16 stage 0 is another arithmetic: it rounds what the sharded optimizers keep in float32.
    """
    return 0 if precision == "fp32" else min(stage, 1)


def run_cells(
    folder: Path, variants: list[str], stages: tuple[int, ...] = STAGES
) -> dict[Any, str]:
    """Run every cell of some variants. Returns verdicts by (variant, precision, stage, ranks)."""
    keys = list(product(variants, PRECISIONS, sorted({0, 1, *stages}), RANKS))
    configs = {key: cell(folder, *key) for key in keys}
    for ranks in RANKS:
        mine = [config for key, config in configs.items() if key[3] == ranks]
        run_ranks(train_cells, ranks, mine, timeout_s=400)
    return {
        key: verdict(config, configs[(*key[:2], reference_stage(key[1], key[2]), 1)])
        for key, config in configs.items()
    }


def table(verdicts: dict[Any, str]) -> str:
    """Lay the verdicts out as a Markdown table, one row per variant and precision."""
    columns = list(product(STAGES, RANKS))
    lines = [
        "| backbone | precision | "
        + " | ".join(f"ZeRO-{stage}, {ranks} rank{'s' * (ranks > 1)}" for stage, ranks in columns)
        + " |",
        "|" + "---|" * (2 + len(columns)),
    ]
    for variant, precision in product(VARIANTS, PRECISIONS):
        cells = [verdicts[variant, precision, *column] for column in columns]
        lines.append(f"| {variant} | {precision} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["LoRA", "4-bit"])
def test_two_ranks_of_zero_train_as_one_rank_without(tmp_path: Path, variant: str):
    stages = (3,) if variant == "LoRA" else (2,)
    verdicts = run_cells(tmp_path, [variant], stages)
    assert verdicts == dict.fromkeys(verdicts, "yes")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_documented_table_is_what_the_cells_do(tmp_path: Path):
    verdicts = {}
    for variant in VARIANTS:
        verdicts |= run_cells(tmp_path, [variant])
    assert table(verdicts) in TABLE.read_text(encoding="utf-8")


def main() -> int:
    """Run every cell, and write the table into the document."""
    with tempfile.TemporaryDirectory() as folder:
        verdicts = {}
        for variant in VARIANTS:
            verdicts |= run_cells(Path(folder), [variant])
    text = TABLE.read_text(encoding="utf-8") if TABLE.exists() else ""
    begin, end = "<!-- table -->\n", "\n<!-- end of table -->"
    before, _, rest = text.partition(begin)
    TABLE.write_text(before + begin + table(verdicts) + end + rest.partition(end)[2])
    print(json.dumps({"cells": len(verdicts), "yes": sum(v == "yes" for v in verdicts.values())}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
