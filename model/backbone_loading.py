"""Load a language model: whole or cut, as published or fresh, in any precision or in 4 bits.

With model/four_bits.py the only importer of transformers beside the key/value prefix.
"""

import contextlib
import inspect
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModel, AutoTokenizer
from transformers.utils import logging as transformers_logging

from model.adapters import add_lora
from model.backbone import Backbone
from model.backbone_files import BackboneFiles, check_layers
from model.backbone_substitutes import SubstituteModel
from model.config import LANGUAGE_MODELS, BackboneConfig
from model.four_bits import four_bit_settings, keep_layout, listed_per_layer, load_in_shares

# Said aloud: where nothing is said Transformers asks the terminal, and takes yes for an answer.
_NO_FOREIGN_CODE: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}


@dataclass(frozen=True)
class Partition:
    """How the ranks of a ZeRO-3 run share parameters out while a backbone is loaded."""

    settings: dict[str, Any]
    """DeepSpeed JSON of the run, which Transformers reads while it loads."""

    share_out: Callable[[nn.Module], None]
    """Leave this rank its share of a module's parameters, which are whole and the same on every
    rank; those that are shared out already stay as they are. Collective."""


def load_backbone(
    config: BackboneConfig,
    files: BackboneFiles,
    dtype: torch.dtype = torch.float32,
    *,
    seed: int = 0,
    zero3: Partition | None = None,
) -> Backbone:
    """Load the first ``config.llm_layers`` blocks of a language model, frozen, on the CPU.

    Args:
        config: What the user chose.
        files: Where the model lies, from :func:`model.backbone_files.locate_backbone`.
        dtype: Floating type of the weights; with 4 bits that of the rest, and of the arithmetic.
        seed: Of whatever has fresh weights; the global generator is left as it was.
        zero3: Of weights read from safetensors each rank keeps its share alone, of 4-bit ones
            block by block; collective then. Fresh ones and those of a .gguf file are whole, and
            shared out by DeepSpeed later.

    Returns:
        The backbone, in eval mode.

    Raises:
        ValueError: Fewer layers than asked for, an architecture that Transformers does not know
            or that cannot hide padding, weights that do not fill the model, or LoRA targets that
            it does not have.
    """
    if config.kind not in LANGUAGE_MODELS:
        return _load_substitute(config, files, dtype, seed)
    check_layers(files, config.llm_layers)
    if "quantization_config" in files.config:
        raise ValueError(
            f"backbone.name={files.name}: its weights are quantised already: choose the original "
            "model, with backbone.load_in_4bit=true for 4-bit weights."
        )
    with _readable_errors(files):
        model, missing = _load_model(config, files, dtype, seed, zero3)
    lacking = [key for key in missing if not key.startswith("pooler.")]  # removed below
    if lacking:
        raise ValueError(
            f"backbone.name={files.name}: its weight files lack {lacking}, which would be random: "
            "download it again, or set backbone.kind=random."
        )
    if "position_ids" not in inspect.signature(model.forward).parameters:
        raise ValueError(
            f"backbone.name={files.name}: {files.model_type} takes no position_ids, so padding "
            "would move its tokens: choose another backbone."
        )
    model.pooler = None  # BERT-like: computed at every step and read by nobody
    backbone = Backbone(model)
    if backbone.d_llm != files.d_llm:
        raise ValueError(
            f"backbone.name={files.name}: its word embeddings are {backbone.d_llm} wide and its "
            f"hidden states {files.d_llm}: choose a backbone where both are the same."
        )
    backbone = backbone.to(dtype)
    if config.lora.r > 0:
        backbone.unfreeze(*add_lora(backbone.language_model, config.lora, seed))
    if config.activation_checkpointing:
        backbone.recompute_blocks()
    return backbone


def build_weightless(
    config: BackboneConfig, content: Mapping[str, Any], dtype: torch.dtype
) -> Backbone:
    """Build the first blocks of a language model on the meta device: shapes without memory.

    Args:
        config: What the user chose; 4-bit weights are built as whole ones.
        content: The model's config.json.
        dtype: Floating type of the weights.

    Returns:
        The backbone that :func:`load_backbone` would make, its weights without any values.
    """
    settings = {key: value for key, value in content.items() if key != "model_type"}
    whole = AutoConfig.for_model(content["model_type"], **settings)
    cut = _cut(whole, int(whole.num_hidden_layers), config.llm_layers)
    with torch.device("meta"):
        model: Any = AutoModel.from_config(cut, attn_implementation="sdpa", dtype=dtype)
        model.pooler = None
        if config.kind not in LANGUAGE_MODELS:
            model = SubstituteModel(model.get_input_embeddings(), config.kind, seed=0)  # type: ignore[arg-type]
        backbone = Backbone(model)
        if config.kind in LANGUAGE_MODELS:
            backbone = backbone.to(dtype)
        else:  # what is trained stays float32 until an engine casts it
            backbone.unfreeze(model.blocks.parameters())
        if config.lora.r > 0:
            backbone.unfreeze(*add_lora(model, config.lora, seed=0))
    if config.activation_checkpointing:
        backbone.recompute_blocks()
    return backbone


def load_tokenizer(files: BackboneFiles) -> Any:
    """Load the backbone's tokenizer, padding on the left.

    Returns:
        A Transformers tokenizer with a pad token: its own, else the end-of-text or unknown token.

    Raises:
        ValueError: There is no tokenizer, or none of these tokens.
    """
    extra = {} if files.gguf_file is None else {"gguf_file": files.gguf_file}
    try:
        with _quiet():
            tokenizer = AutoTokenizer.from_pretrained(
                files.folder, padding_side="left", **_NO_FOREIGN_CODE, **extra
            )
        # Without its files Transformers makes some tokenizers up, with an empty vocabulary.
        ids = tokenizer("min 0.5", add_special_tokens=False).input_ids
        if all(token == tokenizer.unk_token_id for token in ids):
            raise ValueError("it knows no word")
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ValueError(
            f"backbone.name={files.name}: {files.folder} has no tokenizer that can be read "
            f"({_first_line(error)}): add its tokenizer files, or set model.prompt=none."
        ) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token is None:
        raise ValueError(
            f"backbone.name={files.name}: its tokenizer has no pad, eos or unk token: name a "
            "pad_token in tokenizer_config.json."
        )
    return tokenizer


def save_kept_layers(
    config: BackboneConfig, files: BackboneFiles, folder: Path, *, with_tokenizer: bool
) -> None:
    """Write the blocks that are kept of a language model as a folder of its own.

    Args:
        config: What the user chose; 4-bit weights are written as they are before.
        files: Where the whole model lies.
        folder: A new one; :func:`load_backbone` makes the same of it.
        with_tokenizer: Write the tokenizer too.
    """
    is_language_model = config.kind in LANGUAGE_MODELS
    layers = config.llm_layers if is_language_model else 1  # of the others the words are read
    with _readable_errors(files):
        cut = _cut_config(files, layers)
        if config.kind == "random":
            cut.save_pretrained(folder)
        elif files.gguf_file is not None:
            _cut_gguf(files, cut, config.attention).save_pretrained(folder)
        else:
            AutoModel.from_pretrained(
                files.folder, config=cut, dtype="auto", use_safetensors=True, **_NO_FOREIGN_CODE
            ).save_pretrained(folder)
    if with_tokenizer:
        load_tokenizer(files).save_pretrained(folder)


def convert_gguf(gguf: str, folder: str) -> None:
    """Write a .gguf model as an ordinary Transformers folder: float32 safetensors, tokenizer."""
    path = Path(gguf)
    with _quiet():
        _load_gguf(path).save_pretrained(folder)
        AutoTokenizer.from_pretrained(
            path.parent, gguf_file=path.name, **_NO_FOREIGN_CODE
        ).save_pretrained(folder)


def _load_substitute(
    config: BackboneConfig, files: BackboneFiles, dtype: torch.dtype, seed: int
) -> Backbone:
    """Keep the word embeddings, and put one trained layer, or nothing, in the model's place."""
    whole = load_backbone(BackboneConfig(name=config.name, llm_layers=1), files, dtype)
    words = cast(Any, whole.language_model).get_input_embeddings()
    model = SubstituteModel(words, config.kind, seed)  # type: ignore[arg-type]
    backbone = Backbone(model)
    backbone.unfreeze(model.blocks.parameters())
    return backbone


@contextlib.contextmanager
def _readable_errors(files: BackboneFiles) -> Iterator[None]:
    try:
        with _quiet():
            yield
    except (ImportError, KeyError, OSError, ValueError) as error:
        raise ValueError(
            f"backbone.name={files.name}: Transformers cannot load it ({_first_line(error)}): "
            "choose another backbone."
        ) from error


@contextlib.contextmanager
def _sharded_at_load(zero3: Partition | None) -> Iterator[None]:
    """Let Transformers shard the weights over the ranks as it loads them."""
    if zero3 is None:
        yield
        return
    from transformers.integrations import HfDeepSpeedConfig

    alive = HfDeepSpeedConfig(zero3.settings)  # Transformers looks for it as long as it lives
    try:
        yield
    finally:
        del alive


def _load_model(
    config: BackboneConfig,
    files: BackboneFiles,
    dtype: torch.dtype,
    seed: int,
    zero3: Partition | None,
) -> tuple[Any, list[str]]:
    """Load the blocks kept; returns the names of what the files do not fill too."""
    cut = _cut_config(files, config.llm_layers)
    if config.kind == "pretrained" and files.gguf_file is None:
        if config.load_in_4bit and zero3 is not None:
            return load_in_shares(files.weight_files, cut, dtype, config.attention, zero3.share_out)
        with _sharded_at_load(zero3):
            return _pretrained_model(files.folder, cut, dtype, config)
    if config.kind == "random":
        model = _random_model(cut, seed, config.attention)
    else:
        model = _cut_gguf(files, cut, config.attention)
    if not config.load_in_4bit:
        return model, []
    # Transformers makes 4-bit weights from files alone.
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return _pretrained_model(Path(folder), cut, dtype, config)


def _cut_config(files: BackboneFiles, llm_layers: int) -> Any:
    """Read the configuration and keep ``llm_layers`` of everything that is listed per layer."""
    extra = {} if files.gguf_file is None else {"gguf_file": files.gguf_file}
    config = AutoConfig.from_pretrained(files.folder, **_NO_FOREIGN_CODE, **extra)
    return _cut(config, files.num_layers, llm_layers)


def _cut(config: Any, num_layers: int, llm_layers: int) -> Any:
    for key, value in listed_per_layer(config, num_layers).items():
        setattr(config, key, value[:llm_layers])
    config.num_hidden_layers = llm_layers
    for key in ("activation_function", "hidden_act"):  # GPT-2's name for it, and the others'
        if getattr(config, key, None) == "gelu_new":
            # The same function as one operation, instead of eight whose results are mostly kept
            # for the backward pass; on a CPU half the time.
            setattr(config, key, "gelu_pytorch_tanh")
    return config


def _random_model(cut: Any, seed: int, attention: str) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModel.from_config(cut, attn_implementation=attention, dtype=torch.float32)


def _pretrained_model(
    folder: Path, cut: Any, dtype: torch.dtype, config: BackboneConfig
) -> tuple[Any, list[str]]:
    """Load the weights of the blocks kept from a folder, as :func:`_load_model`."""
    model, report = AutoModel.from_pretrained(
        folder,
        config=cut,
        dtype=dtype,
        attn_implementation=config.attention,
        use_safetensors=True,
        **_NO_FOREIGN_CODE,
        output_loading_info=True,
        **(four_bit_settings(dtype) if config.load_in_4bit else {}),
    )
    keep_layout(model)
    return model, sorted(report["missing_keys"])


def _cut_gguf(files: BackboneFiles, cut: Any, attention: str) -> Any:
    """Load every layer of a .gguf file, then keep those of ``cut``."""
    assert files.gguf_file is not None
    whole = _load_gguf(files.folder / files.gguf_file).state_dict()
    model = AutoModel.from_config(cut, attn_implementation=attention, dtype=torch.float32)
    model.load_state_dict({key: whole[key] for key in model.state_dict()})
    return model


def _load_gguf(path: Path) -> Any:
    extra = {}
    if hasattr(transformers, "GgufConfig"):  # older versions always unpack the 4-bit blocks
        extra["quantization_config"] = transformers.GgufConfig(gguf_file=path.name, dequantize=True)
    return AutoModel.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, **_NO_FOREIGN_CODE, **extra
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence progress bars, and the report that the layers cut off were not loaded."""
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
