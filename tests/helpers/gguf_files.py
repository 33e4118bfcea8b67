"""Write a tiny LLaMA folder as an unquantised .gguf file, as llama.cpp's converter would."""

import json
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import load_file

_BLOCK_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
_OUTER_NAMES = {"embed_tokens.weight": "token_embd.weight", "norm.weight": "output_norm.weight"}


def write_gguf(folder: Path, path: Path, licence: str | None = None) -> Path:
    """Write the LLaMA in ``folder`` to ``path``; returns ``path``."""
    config = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(path, "llama")
    if licence is not None:
        writer.add_license(licence)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config["vocab_size"])
    for name, values in load_file(folder / "model.safetensors").items():
        if name.endswith("q_proj.weight"):
            values = _interleave(values, config["num_attention_heads"])
        elif name.endswith("k_proj.weight"):
            values = _interleave(values, config["num_key_value_heads"])
        writer.add_tensor(_gguf_name(name), np.ascontiguousarray(values, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _gguf_name(name: str) -> str:
    if name in _OUTER_NAMES:
        return _OUTER_NAMES[name]
    _, block, part = name.split(".", 2)
    return f"blk.{block}.{_BLOCK_NAMES[part.removesuffix('.weight')]}.weight"


def _interleave(weight: np.ndarray, n_heads: int) -> np.ndarray:
    """Order rotary pairs as llama.cpp does: neighbours, instead of halves."""
    out, width = weight.shape
    return weight.reshape(n_heads, 2, out // n_heads // 2, width).swapaxes(1, 2).reshape(out, width)
