"""Tiny language models with random weights, written as ordinary Transformers folders."""

import atexit
import functools
import shutil
import tempfile
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from torch import Tensor

from model.backbone import Backbone
from model.backbone_files import locate_backbone
from model.backbone_loading import load_backbone
from model.config import BackboneConfig

Kind = Literal["gpt2", "qwen2", "llama", "mistral", "bert"]
KINDS: tuple[Kind, ...] = ("gpt2", "qwen2", "llama", "mistral", "bert")
DECODERS: tuple[Kind, ...] = ("gpt2", "qwen2", "llama", "mistral")

TOKENIZER_SIZE = 320
VOCAB_SIZE = 384
"""More than the tokenizer knows, as in most published models; some tokenizers add a pad token."""


@functools.cache
def tiny_backbone(kind: Kind, num_layers: int = 4, width: int = 32) -> Path:
    """Write a tiny model and its tokenizer once per test session; returns the folder.

    The weights are ten times larger than a fresh model's, so that every block changes the output
    by far more than rounding does.
    """
    folder = _session_folder() / f"{kind}-{num_layers}-{width}"
    config = _config(kind, num_layers, width)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModel.from_config(config)
    transformers.logging.disable_progress_bar()
    model.save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
    return folder


def load_tiny(
    architecture: Kind = "gpt2",
    llm_layers: int = 2,
    num_layers: int = 4,
    width: int = 32,
    dtype: torch.dtype = torch.float32,
    **settings: Any,
) -> Backbone:
    """Load the first blocks of a tiny model; settings are those of ``backbone``."""
    name = str(tiny_backbone(architecture, num_layers, width))
    config = BackboneConfig(name=name, llm_layers=llm_layers, **settings)
    return load_backbone(config, locate_backbone(name), dtype)


def tokens_of(rows: int = 2, length: int = 7, width: int = 32) -> Tensor:
    """Embeddings of any tokens, the same each time. (R, T, E)."""
    return torch.randn(rows, length, width, generator=torch.Generator().manual_seed(0))


def all_true(embeddings: Tensor) -> Tensor:
    """A mask without padding. (R, T, E) -> (R, T)."""
    return torch.ones(embeddings.shape[:2], dtype=torch.bool)


def _config(kind: Kind, num_layers: int, width: int) -> transformers.PretrainedConfig:
    if kind == "gpt2":
        return transformers.GPT2Config(
            vocab_size=VOCAB_SIZE,
            n_embd=width,
            n_layer=num_layers,
            n_head=4,
            n_positions=512,
            initializer_range=0.2,
            bos_token_id=0,
            eos_token_id=0,
        )
    shared = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": width,
        "num_hidden_layers": num_layers,
        "num_attention_heads": 4,
        "intermediate_size": 2 * width,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
    }
    if kind == "bert":
        return transformers.BertConfig(**shared)
    types = {
        "qwen2": transformers.Qwen2Config,
        "llama": transformers.LlamaConfig,
        "mistral": transformers.MistralConfig,
    }
    return types[kind](**shared, num_key_value_heads=2)


@functools.cache
def _tokenizer() -> transformers.PreTrainedTokenizerFast:
    """A byte-level tokenizer: any text has tokens, a few words have one of their own."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=TOKENIZER_SIZE,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the next steps of the series, min max median trend"], trainer)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")


@functools.cache
def _session_folder() -> Path:
    folder = tempfile.mkdtemp(prefix="tiny-backbones-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)
