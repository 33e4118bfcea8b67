"""How large a language model is, from its config.json alone: dimensions and exact weight counts.

Counts are of what a run keeps: the first ``llm_layers`` blocks, the embeddings and the norm at the
end, without a head over the vocabulary and without BERT's pooler. Free of torch, so that a plan for
seventy billion weights takes no memory.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

RMS_NORM = 1
LAYER_NORM = 2


@dataclass(frozen=True, kw_only=True)
class BackboneShape:
    """Dimensions of the blocks that a run keeps of a language model."""

    name: str
    """Hub name or folder, for messages."""

    model_type: str
    """Architecture, as config.json names it."""

    num_layers: int
    """Blocks kept."""

    d_llm: int
    """Width of the hidden states."""

    n_heads: int
    """Heads of the queries."""

    n_kv_heads: int
    """Heads of keys and values; fewer than ``n_heads`` where queries share them."""

    head_dim: int
    """Width of one head."""

    d_intermediate: int
    """Width inside the feed-forward layer."""

    gated: bool
    """Whether that layer has a third matrix, whose output multiplies the second's (SwiGLU)."""

    vocab: int
    """Rows of the word embeddings."""

    positions: int | None
    """Rows of learned position embeddings; None where positions are rotations."""

    token_types: int
    """Rows of BERT's segment embeddings, 0 elsewhere."""

    qkv_bias: bool
    """Whether queries, keys and values have biases."""

    out_bias: bool
    """Whether the attention's output has one."""

    mlp_bias: bool
    """Whether the feed-forward matrices have them."""

    qk_norm: bool
    """Whether the heads of queries and keys are normalised (Qwen3)."""

    norm_vectors: int
    """Trained vectors of a norm: 1 of RMS norm, 2 of layer norm."""

    @property
    def d_query(self) -> int:
        """Width of all queries of a token."""
        return self.n_heads * self.head_dim

    @property
    def d_key_value(self) -> int:
        """Width of all keys, and of all values, of a token."""
        return self.n_kv_heads * self.head_dim

    @property
    def attention_weights(self) -> int:
        """Numbers in the four attention matrices of a block, biases left out."""
        return 2 * self.d_llm * (self.d_query + self.d_key_value)

    @property
    def mlp_weights(self) -> int:
        """Numbers in the feed-forward matrices of a block, biases left out."""
        return (3 if self.gated else 2) * self.d_llm * self.d_intermediate

    @property
    def matrix_weights_per_block(self) -> int:
        """Numbers in the matrices of a block: what 4-bit quantisation packs."""
        return self.attention_weights + self.mlp_weights

    @property
    def vector_weights_per_block(self) -> int:
        """Numbers in the biases and norms of a block: what stays as it is with 4 bits."""
        biases = 0
        if self.qkv_bias:
            biases += self.d_query + 2 * self.d_key_value
        if self.out_bias:
            biases += self.d_llm
        if self.mlp_bias:
            biases += (2 if self.gated else 1) * self.d_intermediate + self.d_llm
        norms = 2 * self.norm_vectors * self.d_llm + (2 * self.head_dim if self.qk_norm else 0)
        return biases + norms

    @property
    def weights_per_block(self) -> int:
        """Numbers in one block."""
        return self.matrix_weights_per_block + self.vector_weights_per_block

    @property
    def word_weights(self) -> int:
        """Numbers in the word embeddings."""
        return self.vocab * self.d_llm

    @property
    def embedding_weights(self) -> int:
        """Numbers in the embeddings of words, positions and segments."""
        return self.word_weights + ((self.positions or 0) + self.token_types) * self.d_llm

    @property
    def norm_weights(self) -> int:
        """Numbers in the norm after the last block, or after BERT's embeddings."""
        return self.norm_vectors * self.d_llm

    @property
    def total_weights(self) -> int:
        """Numbers in everything kept."""
        return self.num_layers * self.weights_per_block + self.embedding_weights + self.norm_weights


def shape_of(config: Mapping[str, Any], llm_layers: int, name: str = "") -> BackboneShape:
    """Read the shape of the first blocks of a model.

    Args:
        config: Content of its config.json.
        llm_layers: Blocks kept.
        name: What messages call the model.

    Raises:
        ValueError: Fewer blocks than asked for, an architecture that is not known here, or a
            config.json that lacks a dimension.
    """
    model_type = str(config.get("model_type", ""))
    readers = {"gpt2": _gpt2, "bert": _bert, **dict.fromkeys(("llama", "mistral"), _llama),
               "qwen2": _qwen2, "qwen3": _qwen3}  # fmt: skip
    label = name or model_type
    if model_type not in readers:
        raise ValueError(
            f"backbone.name={label}: a plan knows no model_type={model_type!r}: choose one of "
            f"{', '.join(sorted(readers))}."
        )
    try:
        shape: dict[str, Any] = readers[model_type](config)
        blocks = int(config["n_layer" if model_type == "gpt2" else "num_hidden_layers"])
    except KeyError as error:
        raise ValueError(
            f"backbone.name={label}: its config.json lacks {error.args[0]}: complete it."
        ) from None
    if not 1 <= llm_layers <= blocks:
        raise ValueError(
            f"backbone.llm_layers={llm_layers}: {label} has {blocks} layers: choose 1 to {blocks}."
        )
    return BackboneShape(name=label, model_type=model_type, num_layers=llm_layers, **shape)


def published_shape(name: str, llm_layers: int) -> BackboneShape:
    """The shape of a published model, by its hub name, without a file.

    Raises:
        ValueError: It is not in :data:`PUBLISHED`, or has fewer blocks.
    """
    if name not in PUBLISHED:
        raise ValueError(
            f"backbone.name={name}: neither on disk nor among the models that a plan knows: "
            f"give a folder with its config.json, or one of {', '.join(sorted(PUBLISHED))}."
        )
    return shape_of(PUBLISHED[name], llm_layers, name)


def _gpt2(config: Mapping[str, Any]) -> dict[str, Any]:
    width, heads = int(config["n_embd"]), int(config["n_head"])
    return {
        "d_llm": width,
        "n_heads": heads,
        "n_kv_heads": heads,
        "head_dim": width // heads,
        "d_intermediate": int(config.get("n_inner") or 4 * width),
        "gated": False,
        "vocab": int(config["vocab_size"]),
        "positions": int(config["n_positions"]),
        "token_types": 0,
        "qkv_bias": True,
        "out_bias": True,
        "mlp_bias": True,
        "qk_norm": False,
        "norm_vectors": LAYER_NORM,
    }


def _bert(config: Mapping[str, Any]) -> dict[str, Any]:
    width, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
    return {
        "d_llm": width,
        "n_heads": heads,
        "n_kv_heads": heads,
        "head_dim": width // heads,
        "d_intermediate": int(config["intermediate_size"]),
        "gated": False,
        "vocab": int(config["vocab_size"]),
        "positions": int(config["max_position_embeddings"]),
        "token_types": int(config.get("type_vocab_size", 2)),
        "qkv_bias": True,
        "out_bias": True,
        "mlp_bias": True,
        "qk_norm": False,
        "norm_vectors": LAYER_NORM,
    }


def _llama(config: Mapping[str, Any]) -> dict[str, Any]:
    width, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
    bias = bool(config.get("attention_bias", False))
    return {
        "d_llm": width,
        "n_heads": heads,
        "n_kv_heads": int(config.get("num_key_value_heads") or heads),
        "head_dim": int(config.get("head_dim") or width // heads),
        "d_intermediate": int(config["intermediate_size"]),
        "gated": True,
        "vocab": int(config["vocab_size"]),
        "positions": None,
        "token_types": 0,
        "qkv_bias": bias,
        "out_bias": bias,
        "mlp_bias": bool(config.get("mlp_bias", False)),
        "qk_norm": False,
        "norm_vectors": RMS_NORM,
    }


def _qwen2(config: Mapping[str, Any]) -> dict[str, Any]:
    return {**_llama(config), "qkv_bias": True, "out_bias": False, "mlp_bias": False}


def _qwen3(config: Mapping[str, Any]) -> dict[str, Any]:
    # Transformers' default, whatever the width; published Qwen3 models write it down.
    head_dim = int(config.get("head_dim") or 128)
    return {**_llama(config), "qk_norm": True, "head_dim": head_dim, "mlp_bias": False}


def _published_gpt2(n_embd: int, n_layer: int, n_head: int) -> dict[str, Any]:
    return {"model_type": "gpt2", "n_embd": n_embd, "n_layer": n_layer, "n_head": n_head,
            "vocab_size": 50257, "n_positions": 1024}  # fmt: skip


def _published(
    model_type: str, hidden: int, layers: int, heads: int, kv_heads: int, inner: int, vocab: int,
    positions: int,
) -> dict[str, Any]:  # fmt: skip
    return {"model_type": model_type, "hidden_size": hidden, "num_hidden_layers": layers,
            "num_attention_heads": heads, "num_key_value_heads": kv_heads,
            "intermediate_size": inner, "vocab_size": vocab,
            "max_position_embeddings": positions}  # fmt: skip


PUBLISHED: dict[str, dict[str, Any]] = {
    "openai-community/gpt2": _published_gpt2(768, 12, 12),
    "openai-community/gpt2-medium": _published_gpt2(1024, 24, 16),
    "openai-community/gpt2-large": _published_gpt2(1280, 36, 20),
    "openai-community/gpt2-xl": _published_gpt2(1600, 48, 25),
    "Qwen/Qwen2.5-0.5B": _published("qwen2", 896, 24, 14, 2, 4864, 151936, 32768),
    "Qwen/Qwen2.5-1.5B": _published("qwen2", 1536, 28, 12, 2, 8960, 151936, 131072),
    "Qwen/Qwen2.5-7B": _published("qwen2", 3584, 28, 28, 4, 18944, 152064, 131072),
    "Qwen/Qwen2.5-14B": _published("qwen2", 5120, 48, 40, 8, 13824, 152064, 131072),
    "Qwen/Qwen2.5-32B": _published("qwen2", 5120, 64, 40, 8, 27648, 152064, 131072),
    "Qwen/Qwen2.5-72B": _published("qwen2", 8192, 80, 64, 8, 29568, 152064, 131072),
    "meta-llama/Llama-2-7b-hf": _published("llama", 4096, 32, 32, 32, 11008, 32000, 4096),
    "meta-llama/Llama-2-13b-hf": _published("llama", 5120, 40, 40, 40, 13824, 32000, 4096),
    "meta-llama/Llama-2-70b-hf": _published("llama", 8192, 80, 64, 8, 28672, 32000, 4096),
    "meta-llama/Llama-3.1-8B": _published("llama", 4096, 32, 32, 8, 14336, 128256, 131072),
    "meta-llama/Llama-3.1-70B": _published("llama", 8192, 80, 64, 8, 28672, 128256, 131072),
    "mistralai/Mistral-7B-v0.1": _published("mistral", 4096, 32, 32, 8, 14336, 32000, 32768),
    "HuggingFaceTB/SmolLM2-135M": _published("llama", 576, 30, 9, 3, 1536, 49152, 8192),
    "HuggingFaceTB/SmolLM2-360M": _published("llama", 960, 32, 15, 5, 2560, 49152, 8192),
    "HuggingFaceTB/SmolLM2-1.7B": _published("llama", 2048, 24, 32, 32, 8192, 49152, 8192),
    "google-bert/bert-base-uncased": {
        "model_type": "bert", "hidden_size": 768, "num_hidden_layers": 12,
        "num_attention_heads": 12, "intermediate_size": 3072, "vocab_size": 30522,
        "max_position_embeddings": 512, "type_vocab_size": 2,
    },
}  # fmt: skip
"""What matters here of the config.json of published models, by hub name.

The tests compare the counts that follow with the published totals.
"""
