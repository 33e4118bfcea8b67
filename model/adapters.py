"""LoRA: low-rank matrices trained beside the frozen ones. The only importer of peft."""

from typing import Any

import torch
from torch import nn

from model.config import LoraConfig


def add_lora(
    language_model: nn.Module, config: LoraConfig, seed: int
) -> tuple[list[nn.Parameter], list[nn.Module]]:
    """Put a pair of low-rank matrices beside each target layer; mutates the model.

    The pairs start with a product of zero, so the model computes what it did.

    Args:
        language_model: A loaded Transformers model, whole or in 4 bits.
        config: Rank, scale, dropout and targets; ``r`` is at least 1.
        seed: Of their first values; the global generator is left as it was.

    Returns:
        The trained parameters, float32, and the dropout layers before them.

    Raises:
        ValueError: The architecture has no such layers, or one is an embedding, or peft knows no
            targets for it.
    """
    import peft

    targets = None if config.target_modules == "auto" else config.target_modules
    settings = peft.LoraConfig(
        r=config.r,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=targets,
        # GPT-2 keeps its matrices transposed, until they are packed into 4 bits.
        fan_in_fan_out=any(type(m).__name__ == "Conv1D" for m in language_model.modules()),
    )
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            peft.inject_adapter_in_model(settings, language_model)
    except ValueError as error:
        raise ValueError(
            f"backbone.lora.target_modules={config.target_modules}: {_first_sentence(error)}: name "
            f"layers of the backbone, such as {_linear_names(language_model)}, or use all-linear."
        ) from error
    if any(".lora_embedding_" in name for name, _ in language_model.named_parameters()):
        raise ValueError(
            f"backbone.lora.target_modules={config.target_modules}: an embedding is looked up "
            "without gradient, and its pair would never be trained: name layers of the blocks, "
            f"such as {_linear_names(language_model)}."
        )
    trained = [p for name, p in language_model.named_parameters() if ".lora_" in name]
    for parameter in trained:
        parameter.data = parameter.data.float()
    dropouts: list[nn.Module] = [
        module
        for name, module in language_model.named_modules()
        if ".lora_dropout." in name and isinstance(module, nn.Dropout)
    ]
    return trained, dropouts


def _linear_names(language_model: nn.Module) -> list[str]:
    """Last part of the names of all layers with a matrix, each once."""
    names: dict[str, None] = {}
    for name, module in language_model.named_modules():
        weight: Any = getattr(module, "weight", None)
        if isinstance(weight, nn.Parameter) and weight.ndim == 2 and "embed" not in name:
            names.setdefault(name.rsplit(".", 1)[-1])
    return list(names)[:12]


def _first_sentence(error: Exception) -> str:
    return str(error).split(". ")[0].split("\n")[0].rstrip(".")
