"""The frozen language model: load it, cut it, freeze it, run it. The only importer of transformers.

Shape legend (this file):
    R  rows, one per (window, variate)     T  tokens per row, padding included
    V  vocabulary of the language model    E  its hidden width
"""

import contextlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self, cast

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer
from transformers.utils import logging as transformers_logging

from model.backbone_files import BackboneFiles, check_layers
from model.config import BackboneConfig
from model.float32_buffers import KeepsBufferPrecision
from model.key_value_prefix import LastBlockReachedError, Prefix, PrefixCache

_OFFSET_POSITIONS = ("roberta", "xlm-roberta", "camembert", "xlm-roberta-xl")
"""Encoders that count positions from pad_token_id + 1."""


class Backbone(KeepsBufferPrecision):
    """A language model without its output layer: frozen, and in eval mode whatever is asked.

    Its parameters never get a gradient; the embeddings put into :meth:`forward` do. Rotary
    frequencies stay float32 when the module is cast.
    """

    def __init__(self, language_model: nn.Module) -> None:
        """Take a loaded Transformers base model (``AutoModel``), freeze it and own it."""
        super().__init__()
        self.language_model = language_model.requires_grad_(False).eval()
        self._config = cast(Any, language_model).config
        words = self._words
        self.vocab_size = int(words.num_embeddings)
        """Rows of the word embedding, V."""
        self.d_llm = int(words.embedding_dim)
        """Hidden width, E."""
        flags = [m.is_causal for m in language_model.modules() if hasattr(m, "is_causal")]
        self.is_causal = bool(flags) and all(flags) and hasattr(self._config, "use_cache")
        """Whether a token sees only those before it: what came first can then be read first."""
        self._max_tokens = getattr(self._config, "max_position_embeddings", None)
        offset = self._config.model_type in _OFFSET_POSITIONS
        self._first_position = int(self._config.pad_token_id) + 1 if offset else 0

    @property
    def dtype(self) -> torch.dtype:
        """Floating type of the parameters."""
        return next(p.dtype for p in self.parameters() if p.is_floating_point())

    @property
    def word_embeddings(self) -> Tensor:
        """The input embedding of every token, without gradient. Shape (V, E)."""
        weight: Tensor = self._words.weight
        if not hasattr(weight, "ds_id"):
            return weight.detach()
        # Under ZeRO-3 (which marks its parameters so) each rank holds a shard, and the whole
        # exists only inside the owner's forward: look every word up there.
        return self.embed_tokens(torch.arange(self.vocab_size, device=weight.device))

    @property
    def _words(self) -> nn.Embedding:
        # Asked each time: keeping it would register the same module under a second name.
        return cast(nn.Embedding, cast(Any, self.language_model).get_input_embeddings())

    def train(self, mode: bool = True) -> Self:
        """Set the mode; the language model stays in eval mode, so its dropout is never active."""
        super().train(mode)
        self.language_model.eval()
        return self

    @torch.no_grad()
    def embed_tokens(self, ids: Tensor) -> Tensor:
        """Look token ids up. Shape (..., T), int64 -> (..., T, E), without gradient."""
        embedded: Tensor = self._words(ids)
        return embedded

    def read(self, embeddings: Tensor, mask: Tensor, prefix: Prefix | None = None) -> Prefix:
        """Read tokens whose hidden states nobody needs, only to be attended to.

        Their last block computes keys and values alone, which saves most of it.

        Args:
            embeddings: As in :meth:`forward`.
            mask: As in :meth:`forward`.
            prefix: What was read before them.

        Returns:
            The prefix with these tokens added. Gradients flow through it.

        Raises:
            ValueError: As :meth:`forward`, or the model is an encoder.
        """
        # Under ZeRO-3 a pass must not be left half-way: it would keep gathered parameters.
        whole = any(hasattr(parameter, "ds_id") for parameter in self.parameters())
        last = int(self._config.num_hidden_layers) - 1
        cache = PrefixCache(prefix, stop_after=None if whole else last)
        with contextlib.suppress(LastBlockReachedError):
            self._run(embeddings, mask, prefix, cache)
        return cache.as_prefix(_joined_mask(prefix, mask))

    def forward(self, embeddings: Tensor, mask: Tensor, prefix: Prefix | None = None) -> Tensor:
        """Run the blocks that were kept, and the model's final norm.

        Args:
            embeddings: Input tokens of any origin. Shape (R, T, E), floating point.
            mask: True on tokens, False on padding, which may stand anywhere. Shape (R, T), bool.
            prefix: What :meth:`read` made of tokens before these; None: nothing.

        Returns:
            Hidden states, of the backbone's type. Shape (R, T, E). What stands on padding is
            finite and means nothing.

        Raises:
            ValueError: Shapes do not match, or T is more than the model has positions.
        """
        cache = None if prefix is None else PrefixCache(prefix)
        return self._run(embeddings, mask, prefix, cache)

    def _run(
        self, embeddings: Tensor, mask: Tensor, prefix: Prefix | None, cache: PrefixCache | None
    ) -> Tensor:
        if cache is not None and not self.is_causal:
            raise ValueError(
                f"{self._config.model_type} is an encoder, whose tokens see those after them: "
                "model.token_order=prefix_cached needs a decoder; use model.token_order=spec."
            )
        if embeddings.ndim != 3 or embeddings.shape[:2] != mask.shape:
            raise ValueError(
                f"embeddings and mask have shapes {tuple(embeddings.shape)} and "
                f"{tuple(mask.shape)}: pass (R, T, E) and (R, T)."
            )
        whole_mask = _joined_mask(prefix, mask)
        if self._max_tokens is not None and whole_mask.shape[1] > self._max_tokens:
            raise ValueError(
                f"{whole_mask.shape[1]} tokens per row, the backbone has {self._max_tokens} "
                "positions: lower model.max_prompt_tokens or data.seq_len, or raise model.stride."
            )
        # Counted over tokens alone, so that padding does not move the others.
        position_ids_RT = (whole_mask.long().cumsum(dim=1) - 1).clamp_min(0) + self._first_position
        caching: dict[str, Any] = {}
        if cache is not None:
            caching = {"use_cache": True, "past_key_values": cache}
        elif hasattr(self._config, "use_cache"):
            caching = {"use_cache": False}
        output = self.language_model(
            inputs_embeds=embeddings.to(self.dtype),
            attention_mask=whole_mask.long(),
            position_ids=position_ids_RT[:, -embeddings.shape[1] :],
            output_attentions=False,
            output_hidden_states=False,
            **caching,
        )
        states_RTE: Tensor = output.last_hidden_state
        return states_RTE


def _joined_mask(prefix: Prefix | None, mask: Tensor) -> Tensor:
    return mask if prefix is None else torch.cat([prefix.mask, mask], dim=1)


def load_backbone(
    config: BackboneConfig,
    files: BackboneFiles,
    dtype: torch.dtype = torch.float32,
    *,
    seed: int = 0,
) -> Backbone:
    """Load the first ``config.llm_layers`` blocks of a language model, frozen, on the CPU.

    Args:
        config: What the user chose.
        files: Where the model lies, from :func:`model.backbone_files.locate_backbone`.
        dtype: Floating type of the weights.
        seed: Of random weights; the global generator is left as it was.

    Returns:
        The backbone, in eval mode.

    Raises:
        ValueError: Fewer layers than asked for, an architecture that Transformers does not know
            or that cannot hide padding, or weights that do not fill the model.
    """
    check_layers(files, config.llm_layers)
    lacking: list[str] = []
    try:
        with _quiet():
            cut = _cut_config(files, config.llm_layers)
            if config.weights == "random":
                model = _random_model(cut, seed)
            elif files.gguf_file is not None:
                model = _cut_gguf(files, cut)
            else:
                model, lacking = _pretrained_model(files, cut, dtype)
    except (ImportError, KeyError, OSError, ValueError) as error:
        raise ValueError(
            f"backbone.name={files.name}: Transformers cannot load it ({_first_line(error)}): "
            "choose another backbone."
        ) from error
    if lacking:
        raise ValueError(
            f"backbone.name={files.name}: its weight files lack {lacking}, which would be random: "
            "download it again, or set backbone.weights=random."
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
    return backbone.to(dtype)


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
                files.folder, padding_side="left", local_files_only=True, **extra
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


def convert_gguf(gguf: str, folder: str) -> None:
    """Write a .gguf model as an ordinary Transformers folder: float32 safetensors, tokenizer."""
    path = Path(gguf)
    with _quiet():
        _load_gguf(path).save_pretrained(folder)
        AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).save_pretrained(folder)


def _cut_config(files: BackboneFiles, llm_layers: int) -> Any:
    """Read the configuration and keep ``llm_layers`` of everything that is listed per layer."""
    extra = {} if files.gguf_file is None else {"gguf_file": files.gguf_file}
    config = AutoConfig.from_pretrained(files.folder, local_files_only=True, **extra)
    for key, value in config.to_dict().items():
        if "layer" in key and isinstance(value, list) and len(value) == files.num_layers:
            setattr(config, key, value[:llm_layers])  # layer_types and its like
    config.num_hidden_layers = llm_layers
    for key in ("activation_function", "hidden_act"):  # GPT-2's name for it, and the others'
        if getattr(config, key, None) == "gelu_new":
            # The same function as one operation, instead of eight whose results are mostly kept
            # for the backward pass; on a CPU half the time.
            setattr(config, key, "gelu_pytorch_tanh")
    return config


def _random_model(config: Any, seed: int) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModel.from_config(config, attn_implementation="sdpa", dtype=torch.float32)


def _pretrained_model(
    files: BackboneFiles, config: Any, dtype: torch.dtype
) -> tuple[Any, list[str]]:
    """Load the weights of the blocks kept; returns the names that the files do not fill too."""
    model, report = AutoModel.from_pretrained(
        files.folder,
        config=config,
        dtype=dtype,
        attn_implementation="sdpa",
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
    )
    lacking = sorted(key for key in report["missing_keys"] if not key.startswith("pooler."))
    return model, lacking


def _cut_gguf(files: BackboneFiles, config: Any) -> Any:
    """Load every layer of a .gguf file, then keep those of ``config``."""
    assert files.gguf_file is not None
    whole = _load_gguf(files.folder / files.gguf_file).state_dict()
    model = AutoModel.from_config(config, attn_implementation="sdpa", dtype=torch.float32)
    model.load_state_dict({key: whole[key] for key in model.state_dict()})
    return model


def _load_gguf(path: Path) -> Any:
    extra = {}
    if hasattr(transformers, "GgufConfig"):  # older versions always unpack the 4-bit blocks
        extra["quantization_config"] = transformers.GgufConfig(gguf_file=path.name, dequantize=True)
    return AutoModel.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, local_files_only=True, **extra
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
