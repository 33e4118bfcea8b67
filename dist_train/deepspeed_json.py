"""A user's own DeepSpeed JSON: read and checked before torch is imported."""

import difflib
import json
from pathlib import Path
from typing import Any

from dist_train.config import ConfigError

BUCKET = 20_000_000
"""Numbers in a buffer of gradients. DeepSpeed's own 500 million take 1.9 GiB in float32, for a
forecaster that trains a few million."""

# DeepSpeed accepts an unknown top-level key in silence, so a misspelt one would do nothing.
KNOWN_KEYS = frozenset(
    {
        "activation_checkpointing", "aio", "amp", "autotuning", "bf16", "checkpoint",
        "communication_data_type", "comms_logger", "compression_training", "csv_monitor",
        "data_efficiency", "data_types", "disable_allgather", "dump_state", "flops_profiler",
        "fp16", "gradient_accumulation_steps", "gradient_clipping", "gradient_predivide_factor",
        "graph_harvesting", "hybrid_engine", "memory_breakdown", "optimizer", "pipeline",
        "prescale_gradients", "scheduler", "seq_parallel_communication_data_type",
        "sparse_attention", "sparse_gradients", "steps_per_print", "tensor_parallel",
        "tensorboard", "torch_autocast", "train_batch_size", "train_micro_batch_size_per_gpu",
        "use_data_before_expert_parallelism", "use_node_local_storage", "wall_clock_breakdown",
        "wandb", "weight_quantization", "zero_allow_untested_optimizer",
        "zero_force_ds_cpu_optimizer", "zero_optimization",
    }
)  # fmt: skip
# What the run configuration decides; in the user's file these would be ignored or contradict it.
OWN_KEYS = {
    "train_batch_size": "train.batch_size",
    "train_micro_batch_size_per_gpu": "train.micro_batch_size",
    "gradient_accumulation_steps": "train.micro_batch_size",
    "optimizer": "train.learning_rate and train.weight_decay",
    "scheduler": "train.schedule",
    "gradient_clipping": "train.gradient_clipping",
    "bf16": "train.precision",
    "fp16": "train.precision",
    "amp": "train.precision",
    "torch_autocast": "train.precision",
}


def load_user_json(path: Path) -> dict[str, Any]:
    """Read a user's DeepSpeed JSON.

    Raises:
        ConfigError: It cannot be read, has an unknown key, or sets what the run configuration sets.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"deepspeed.config_file={path}: cannot be read as JSON: {error}"
        ) from None
    if not isinstance(content, dict):
        raise ConfigError(f"deepspeed.config_file={path}: must hold a JSON object.")
    for key in content:
        if key in OWN_KEYS:
            raise ConfigError(
                f"deepspeed.config_file={path}: {key} follows from {OWN_KEYS[key]}; remove it "
                "there and set that."
            )
        if key not in KNOWN_KEYS:
            near = difflib.get_close_matches(key, KNOWN_KEYS, n=1)
            hint = f"did you mean {near[0]}?" if near else "DeepSpeed would ignore it."
            raise ConfigError(f"deepspeed.config_file={path}: unknown key {key}: {hint}")
    return content
