"""The memory that a plan predicts against what real DeepSpeed training takes on CPU ranks.

    python -m benchmarks.plan_memory [--quick] [--cases NAME ...]

Every case trains a few steps in fresh processes: random language models of some hundred MB, real
engine, real optimizer, then scores a batch. Measured is the most anonymous memory of a rank
above what it had when everything was imported and had run once, sampled every millisecond, and
weights that are still pages of their file; freed memory goes back to the system at once (MALLOC
settings below). The last line is JSON; ``memory_error_max`` is
the largest |predicted / measured - 1| of all cases.
"""

import argparse
import ctypes
import gc
import json
import os
import sys
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import transformers

from benchmarks.rank_processes import run_on_ranks
from dist_train import engine
from dist_train.build import build_forecaster
from dist_train.config import DeepSpeedConfig, RunConfig, TrainConfig
from dist_train.data.config import DataConfig
from dist_train.objective import loss_terms
from dist_train.parameter_counts import count_parameters
from dist_train.process_memory import measure
from dist_train.shapes import shape_of
from launch.memory_plan import FLOAT64, BankBytes, MemoryPlan, plan_memory
from launch.step_memory import DTYPES, step_memory
from memory_index.exact_shard import ExactShard
from model.backbone_files import locate_backbone
from model.batch import ForecastInputs, RetrievedWindows
from model.config import BackboneConfig, GramConfig, LoraConfig, ModelConfig, TaprConfig
from model.losses import total_loss

# Chunks of this many bytes or more are given back when they are freed, others too when the end of
# the heap is free.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536",
          "MALLOC_ARENA_MAX": "2"}  # fmt: skip
STEPS = 3
SAMPLE_S = 0.001
VARIATES = 2
MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Case:
    """One training."""

    architecture: Literal["gpt2", "llama"]
    width: int
    blocks: int
    vocabulary: int = 8000
    ranks: int = 1
    stage: int = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    windows: int = 4
    """Of a rank and micro-batch."""

    accumulation: int = 1
    seq_len: int = 512
    model: dict[str, Any] = field(default_factory=dict)
    backbone: dict[str, Any] = field(default_factory=dict)
    tapr: bool = True
    bank_entries: int = 0
    """Of an exact index on each rank; 0: no memory in the model either."""


CASES = {
    "fp32_stage0": Case(architecture="gpt2", width=512, blocks=8),
    "bf16_stage2_memory": Case(architecture="llama", width=640, blocks=8, ranks=2, stage=2,
                               precision="bf16", windows=6, bank_entries=80_000),
    "fp32_stage3_two_ranks": Case(architecture="llama", width=512, blocks=8, ranks=2, stage=3,
                                  windows=3, seq_len=336),
    "nf4_stage2": Case(architecture="llama", width=768, blocks=10, stage=2, precision="bf16",
                       windows=3, backbone={"load_in_4bit": True}),
    "bf16_stage0_small_batch": Case(architecture="gpt2", width=768, blocks=12, precision="bf16",
                                    windows=1, seq_len=256),
    "vocabulary_stage2": Case(architecture="gpt2", width=512, blocks=4, vocabulary=32000, stage=2,
                              model={"prototype_map": "vocabulary"}),
    "vocabulary_bf16_stage1": Case(architecture="gpt2", width=512, blocks=4, vocabulary=32000,
                                   ranks=2, stage=1, precision="bf16",
                                   model={"prototype_map": "vocabulary"}, tapr=False),
    "vocabulary_bf16_stage3": Case(architecture="gpt2", width=512, blocks=4, vocabulary=32000,
                                   ranks=2, stage=3, precision="bf16", windows=2,
                                   model={"prototype_map": "vocabulary"}),
    "vocabulary_bf16_stage0": Case(architecture="gpt2", width=512, blocks=4, vocabulary=32000,
                                   precision="bf16", windows=2,
                                   model={"prototype_map": "vocabulary"}),
    "checkpointing": Case(architecture="llama", width=512, blocks=12, windows=8, stage=2,
                          backbone={"activation_checkpointing": True}),
    "prefix_cached": Case(architecture="gpt2", width=512, blocks=8, windows=6, stage=1,
                          model={"token_order": "prefix_cached"}),
    "lora_accumulated": Case(architecture="llama", width=512, blocks=8, windows=3, stage=2,
                             accumulation=2, precision="bf16",
                             backbone={"lora": LoraConfig(r=16, target_modules="all-linear")}),
}  # fmt: skip
PLANNED_AS = {"forward": "training", "backward": "training"}
QUICK = ("fp32_stage0", "bf16_stage2_memory", "nf4_stage2")


def run_config(case: Case, folder: str) -> RunConfig:
    """The run of a case, with a backbone that lies in a folder."""
    batch = case.windows * case.accumulation * case.ranks
    return RunConfig(
        data=DataConfig(seq_len=case.seq_len),
        model=ModelConfig(max_prompt_tokens=100, **case.model),
        backbone=BackboneConfig(name=folder, llm_layers=case.blocks, **case.backbone),
        tapr=TaprConfig(use_tapr=case.tapr),
        gram=GramConfig(use_gram=case.bank_entries > 0),
        train=TrainConfig(batch_size=batch, micro_batch_size=case.windows, precision=case.precision,
                          eval_batch_size=case.windows),
        deepspeed=DeepSpeedConfig(zero_stage=case.stage),
    )  # fmt: skip


def predict(case: Case, config: RunConfig, content: dict[str, Any]) -> MemoryPlan:
    """What the plan says of a case, without what the libraries take."""
    shape = shape_of(content, case.blocks)
    width = 2 * config.gram.d_repr
    # Keys, ids, and the norms of the keys in float64.
    index = case.bank_entries * (4 * width + 8 + 8)
    return plan_memory(
        config, shape, count_parameters(config, shape),
        step_memory(config, content, VARIATES, case.windows, case.precision),
        ranks=case.ranks, precision=case.precision, device="cpu", runtime=0,
        bank=BankBytes(index=index, building=case.bank_entries * 2 * FLOAT64 * width),
    )  # fmt: skip


def write_backbone(case: Case, folder: Path) -> dict[str, Any]:
    """Write a random language model; returns its config.json."""
    if case.architecture == "gpt2":
        config: Any = transformers.GPT2Config(
            n_embd=case.width, n_layer=case.blocks, n_head=8, vocab_size=case.vocabulary,
            bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
    else:
        config = transformers.LlamaConfig(
            hidden_size=case.width, num_hidden_layers=case.blocks, num_attention_heads=8,
            num_key_value_heads=4, intermediate_size=int(2.75 * case.width),
            vocab_size=case.vocabulary,
        )  # fmt: skip
    transformers.logging.disable_progress_bar()
    torch.manual_seed(0)
    transformers.AutoModel.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    content: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return content


def weights_in_files(module: torch.nn.Module) -> int:
    """Bytes of weights that are still pages of the file that they were read from.

    Weights that are read in their own type stay so until they are written to. They are no
    anonymous memory, and yet a part of what the training needs; other pages of the file, of weights
    that were packed or cast, are the system's to take back.
    """
    found = lies = 0
    spans = [(p.data_ptr(), p.nbytes) for p in module.parameters() if p.nbytes]
    for line in Path("/proc/self/smaps").read_text(encoding="ascii", errors="replace").splitlines():
        words = line.split()
        if "-" in words[0] and not words[0].endswith(":"):
            begin, end = (int(place, 16) for place in words[0].split("-"))
            is_file = words[-1].endswith(".safetensors")
            lies = sum(size for at, size in spans if begin <= at < end) if is_file else 0
        elif words[0] == "Anonymous:" and lies:
            found += max(0, lies - 1024 * int(words[1]))  # what was written to is anonymous
    return found


class Peaks:
    """The most anonymous memory of this process above a base, by phase."""

    def __init__(self) -> None:
        self.by_phase: dict[str, int] = {}
        self.phase = ""
        self._done = threading.Event()
        self.base = 0
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def begin(self) -> None:
        """Take what there is as the base."""
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        self.base = measure().resident
        self._thread.start()

    def enter(self, phase: str) -> None:
        """Count as another phase from here on."""
        self._look()
        self.phase = phase

    def end(self) -> dict[str, int]:
        """Stop; bytes by phase."""
        self._done.set()
        self._thread.join()
        return {phase: size - self.base for phase, size in self.by_phase.items() if phase}

    def _look(self) -> None:
        used, phase = measure().resident, self.phase
        self.by_phase[phase] = max(used, self.by_phase.get(phase, 0))

    def _watch(self) -> None:
        while not self._done.wait(SAMPLE_S):
            self._look()


def warm_up(config: RunConfig, dtype: torch.dtype) -> None:
    """Do a step once without an engine, and forget it.

    Much is imported at first use, and oneDNN compiles a kernel for every shape in bf16 and keeps
    its code (some 40 MB in these cases): all of that belongs to what the libraries take.
    """
    engine.prepare()
    model = build_forecaster(config, locate_backbone(config.backbone.name), dtype).to(dtype)
    if model.trend is not None:
        model.trend.thresholds.fit(torch.randn(1000))
    inputs, retrieved, target = batch_of(config)
    output = model.train()(inputs, retrieved, target)
    loss = output.forecast.square().mean()
    if output.gate is not None and output.match is not None:
        loss = loss + output.gate.mean() + output.match.mean()
    if output.trend is not None:
        loss = loss + output.trend.direction.mean() + output.trend.magnitude.mean()
    loss.backward()
    with torch.no_grad():
        model.eval()(inputs, retrieved)


def train(rank: int, world_size: int, case: Case, folder: str) -> dict[str, Any]:
    """Train a few steps on this rank, and score a batch."""
    config = run_config(case, folder)
    dtype = DTYPES[case.precision]
    warm_up(config, dtype)
    peaks = Peaks()
    peaks.begin()
    peaks.enter("bank")
    bank = None
    if case.bank_entries:
        keys = torch.randn(case.bank_entries, 2 * config.gram.d_repr)
        bank = ExactShard(keys, torch.arange(case.bank_entries))
        del keys
    peaks.enter("loading")
    settings = engine.deepspeed_json(config, world_size, dtype)
    model = build_forecaster(
        config, locate_backbone(folder), dtype,
        zero3=engine.partition_of(settings),
    )  # fmt: skip
    if model.trend is not None:
        model.trend.thresholds.fit(torch.randn(1000))
    peaks.enter("engine start")
    ds = engine.initialize(model, config, settings, total_steps=100)
    left = {}
    for step in range(STEPS):
        for _ in range(case.accumulation):
            peaks.enter("forward")
            inputs, retrieved, target = batch_of(config)
            ds.module.train()
            output = ds(inputs, retrieved, target)
            terms = loss_terms(output, target, retrieved, config)
            peaks.enter("backward")
            ds.backward(total_loss(terms, step, 500))
            del output, terms
            peaks.enter("optimizer")
            ds.step()
        peaks.enter("between steps")
        left[step] = measure().resident - peaks.base
    peaks.enter("evaluation")
    ds.module.eval()
    with torch.no_grad():
        inputs, retrieved, _ = batch_of(config)
        ds(inputs, retrieved)
    del bank
    mapped = weights_in_files(ds.module)
    found = {
        phase: size + (0 if phase in ("bank", "loading") else mapped)
        for phase, size in peaks.end().items()
    }
    ds.close()
    return {
        "phases": found,
        "base": peaks.base,
        "between_steps": list(left.values()),
        "weights_in_files": mapped,
    }


def batch_of(config: RunConfig) -> tuple[ForecastInputs, RetrievedWindows | None, torch.Tensor]:
    """Random windows with prompts of the longest kind."""
    size = config.train.micro_batch_size
    assert size is not None
    data, rows = config.data, size * VARIATES
    inputs = ForecastInputs(
        context=torch.randn(size, data.seq_len, VARIATES),
        prompt_ids=torch.randint(0, 100, (rows, config.model.max_prompt_tokens)),
        prompt_mask=torch.ones(rows, config.model.max_prompt_tokens, dtype=torch.bool),
    )
    assert inputs.prompt_mask is not None
    inputs.prompt_mask[0, 0] = False  # rows differ in length, and what is padded takes a mask
    retrieved = None
    if config.gram.use_gram is True:
        top_k = config.gram.top_k
        retrieved = RetrievedWindows(
            windows=torch.randn(rows, top_k, data.seq_len),
            futures=torch.randn(rows, top_k, data.pred_len),
            ids=torch.arange(rows * top_k).view(rows, top_k),
            valid=torch.ones(rows, top_k, dtype=torch.bool),
        )
    return inputs, retrieved, torch.randn(size, data.pred_len, VARIATES)


def compare(name: str) -> dict[str, Any]:
    """Predict and measure one case."""
    case = CASES[name]
    with tempfile.TemporaryDirectory() as folder:
        content = write_backbone(case, Path(folder))
        plan = predict(case, run_config(case, folder), content)
        os.environ |= MALLOC
        ranks = run_on_ranks(train, case.ranks, case, folder)
    measured = {
        phase: max(rank["phases"].get(phase, 0) for rank in ranks) for phase in ranks[0]["phases"]
    }
    most = max(measured.values())
    return {
        "case": name,
        "predicted_mib": round(plan.total / MIB, 1),
        "measured_mib": round(most / MIB, 1),
        "error": round(plan.total / most - 1, 4),
        "base_mib": round(max(rank["base"] for rank in ranks) / MIB, 1),
        "predicted_phases_mib": {
            phase: round(sum(parts.values()) / MIB, 1) for phase, parts in plan.phases.items()
        },
        "measured_phases_mib": {phase: round(size / MIB, 1) for phase, size in measured.items()},
        "between_steps_mib": [round(size / MIB, 1) for size in ranks[0]["between_steps"]],
        "parts_mib": {part: round(size / MIB, 1) for part, size in plan.parts.items()},
    }


def main() -> int:
    """Run the cases and print them; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help=f"Only {', '.join(QUICK)}.")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), help="Only these.")
    options = parser.parse_args()
    names = options.cases or (QUICK if options.quick else CASES)
    results = []
    for name in names:
        found = compare(name)
        results.append(found)
        sizes = f"predicted {found['predicted_mib']:.1f} MiB, measured {found['measured_mib']:.1f}"
        print(f"{name}: {sizes}, error {100 * found['error']:+.1f} %", flush=True)
        for phase, size in found["measured_phases_mib"].items():
            plan = found["predicted_phases_mib"].get(PLANNED_AS.get(phase, phase))
            told = "" if plan is None else f"{plan:8.1f}"
            print(f"    {phase:14} predicted {told:>8}     measured {size:8.1f}")
    worst = max(abs(found["error"]) for found in results)
    print(json.dumps({"memory_error_max": worst, "cases": results}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
