"""Tokens that were read before: their keys and values in every block of the language model.

What follows them attends to them without computing them again. With causal attention that equals
reading everything at once; and the last block is spared all tokens whose states nobody asks for.

Shape legend (this file):
    R  rows     T  tokens of the prefix     G  key-value heads     W  width of a head
"""

from typing import Any, NamedTuple

from torch import Tensor
from transformers import DynamicCache


class Prefix(NamedTuple):
    """Keys and values of some tokens, block by block."""

    keys: tuple[Tensor, ...]
    """Of each block. Shape (R, G, T, W)."""

    values: tuple[Tensor, ...]
    """Of each block. Shape (R, G, T, W)."""

    mask: Tensor
    """True on tokens, False on padding. Shape (R, T), bool."""

    def expand(self, rows: int) -> "Prefix":
        """Let rows share a prefix of one row. (1, ...) -> (rows, ...); no copy."""
        return Prefix(
            keys=tuple(part.expand(rows, -1, -1, -1) for part in self.keys),
            values=tuple(part.expand(rows, -1, -1, -1) for part in self.values),
            mask=self.mask.expand(rows, -1),
        )


class LastBlockReachedError(Exception):
    """The last block's keys and values are known: nothing else is wanted of this pass."""


class PrefixCache(DynamicCache):  # type: ignore[misc]
    """A Transformers cache that begins with a prefix, and may end the pass early."""

    def __init__(self, prefix: Prefix | None, *, stop_after: int | None = None) -> None:
        """Put the prefix in.

        Args:
            prefix: What was read before; None: nothing.
            stop_after: Number of the block after whose keys and values the pass ends with
                :class:`LastBlockReachedError`; None: it runs to its end.
        """
        super().__init__()
        self._stop_after: int | None = None
        if prefix is not None:
            for block, (keys, values) in enumerate(zip(prefix.keys, prefix.values, strict=True)):
                super().update(keys, values, block)
        self._stop_after = stop_after

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Add the keys and values of new tokens; Transformers calls this in every block."""
        keys, values = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        if layer_idx == self._stop_after:
            raise LastBlockReachedError
        return keys, values

    def as_prefix(self, mask: Tensor) -> Prefix:
        """What was read, as a prefix of what comes next. ``mask`` is (R, T)."""
        return Prefix(
            keys=tuple(layer.keys for layer in self.layers),
            values=tuple(layer.values for layer in self.layers),
            mask=mask,
        )
