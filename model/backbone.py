"""The language model as the forecaster sees it: tokens in, hidden states out.

Shape legend (this file):
    R  rows, one per (window, variate)     T  tokens per row, padding included
    V  vocabulary of the language model    E  its hidden width
"""

import contextlib
from collections.abc import Iterable
from functools import partial
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.float32_buffers import KeepsBufferPrecision
from model.key_value_prefix import LastBlockReachedError, Prefix, PrefixCache

_WINDOWS = ("sliding_window", "local_attention", "attention_chunk_size", "window_size")
"""What configurations call the number of tokens that a block with local attention looks back."""

_OFFSET_POSITIONS = ("roberta", "xlm-roberta", "camembert", "xlm-roberta-xl")
"""Encoders that count positions from pad_token_id + 1."""


def block_list(language_model: nn.Module, depth: int) -> tuple[str, nn.ModuleList]:
    """Find the list of a language model's ``depth`` blocks, and what it is called."""
    return next(
        (name, module)
        for name, module in language_model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == depth
    )


class Backbone(KeepsBufferPrecision):
    """A language model without its output layer: frozen, and in eval mode whatever is asked.

    Its own parameters never get a gradient; the embeddings put into :meth:`forward` do, and the
    few parameters that :meth:`unfreeze` is told of. Rotary frequencies stay float32 when the
    module is cast.
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
        self.reach = _reach(self._config, language_model)
        """Tokens that its nearest-sighted block looks back, padding counted; None: all of them; 0:
        some block passes a state from token to token."""
        causal = bool(flags) and all(flags) and hasattr(self._config, "use_cache")
        self.can_read_ahead = causal and self.reach != 0
        """Whether tokens can be read before those after them, as they see none of them."""
        self.is_trained = False
        """Whether something in it is trained: then nothing it computed outlives a step."""
        self._dropouts: tuple[nn.Module, ...] = ()
        offset = self._config.model_type in _OFFSET_POSITIONS
        self._first_position = int(self._config.pad_token_id) + 1 if offset else 0
        positions = getattr(self._config, "max_position_embeddings", None)
        self._max_tokens = None if positions is None else int(positions) - self._first_position

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
        for dropout in self._dropouts:
            dropout.train(mode)
        return self

    def unfreeze(
        self, parameters: Iterable[nn.Parameter], dropouts: Iterable[nn.Module] = ()
    ) -> None:
        """Train these parameters of it, and let these dropout layers follow the mode."""
        for parameter in parameters:
            parameter.requires_grad_(True)
            self.is_trained = True
        self._dropouts = tuple(dropouts)

    def recompute_blocks(self) -> None:
        """Keep the input of each block alone, and compute the block again for its gradient."""
        _, blocks = block_list(self.language_model, int(self._config.num_hidden_layers))
        # Its forward, not the module: hooks that gather its weights stay outside.
        for block in blocks:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
        # A block computed twice would add its keys and values to a cache twice.
        self.can_read_ahead = False

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
            mask: True on tokens, False on padding, which may stand anywhere, but before all tokens
                where :attr:`reach` is a number. Shape (R, T), bool.
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
        if cache is not None and not self.can_read_ahead:
            raise ValueError(
                f"{self._config.model_type} cannot read tokens ahead: model.token_order="
                "prefix_cached needs a decoder, and backbone.activation_checkpointing=false."
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


def _reach(config: Any, language_model: nn.Module) -> int | None:
    # What passes a state along (Mamba, gated DeltaNet, LFM2) convolves over tokens first.
    if any(isinstance(module, nn.Conv1d) for module in language_model.modules()):
        return 0
    if getattr(config, "use_sliding_window", True) is False:
        return None
    windows = [getattr(config, name, None) for name in _WINDOWS]
    return min((int(window) for window in windows if window), default=None)


def _joined_mask(prefix: Prefix | None, mask: Tensor) -> Tensor:
    return mask if prefix is None else torch.cat([prefix.mask, mask], dim=1)
