"""What stands in the language model's place, to see what it is worth.

Source: Tan et al. 2024 (arXiv:2406.16964), who found that forecasters with these in place of the
language model are as accurate.

Shape legend (this file):
    R  rows     T  tokens per row     E  hidden width     G  attention heads
"""

from types import SimpleNamespace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from model.attention import attend

HEAD_WIDTH = 64
MLP_FACTOR = 4


class SubstituteModel(nn.Module):
    """Takes what a Transformers model takes, and keeps its word embeddings alone."""

    def __init__(
        self, words: nn.Embedding, kind: Literal["none", "attention", "transformer"], seed: int
    ) -> None:
        """Build the layer in its place.

        Args:
            words: The language model's word embeddings; the text prototypes need them.
            kind: none: hidden states are the tokens themselves; attention: one layer of
                self-attention with its norm and residual; transformer: that and an MLP.
            seed: Of the first weights; the global generator is left as it was.
        """
        super().__init__()
        self.words = words
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            width = words.embedding_dim
            parts: list[nn.Module] = [] if kind == "none" else [_Attention(width)]
            if kind == "transformer":
                parts.append(_Mlp(width))
        self.blocks = nn.ModuleList(parts)
        self.config = SimpleNamespace(model_type=f"backbone.kind={kind}")

    def get_input_embeddings(self) -> nn.Embedding:
        """The word embeddings."""
        return self.words

    def forward(self, inputs_embeds: Tensor, attention_mask: Tensor, **_: Any) -> SimpleNamespace:
        """Compute hidden states.

        Args:
            inputs_embeds: Tokens. Shape (R, T, E).
            attention_mask: 1 on tokens, 0 on padding. Shape (R, T).

        Returns:
            ``last_hidden_state``, shape (R, T, E).
        """
        states_RTE = inputs_embeds
        for block in self.blocks:
            dtype = next(block.parameters()).dtype
            states_RTE = states_RTE.to(dtype)
            states_RTE = states_RTE + block(states_RTE, attention_mask.bool())
        return SimpleNamespace(last_hidden_state=states_RTE.to(inputs_embeds.dtype))


class _Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = max(1, width // HEAD_WIDTH)
        while width % self.heads:
            self.heads -= 1
        self.norm = nn.LayerNorm(width)
        self.inward = nn.Linear(width, 3 * width)
        self.outward = nn.Linear(width, width)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """Attend from every token to all of its row. (R, T, E) and (R, T) -> (R, T, E)."""
        rows, tokens, _ = states.shape
        parts_3RGTW = (
            self.inward(self.norm(states))
            .view(rows, tokens, 3, self.heads, -1)
            .permute(2, 0, 3, 1, 4)
        )
        # A row of padding alone attends to everything, so that it stays finite.
        seen_RT = mask | ~mask.any(dim=1, keepdim=True)
        query, key, value = parts_3RGTW
        attended_RGTW = attend(query, key, value, seen_RT[:, None, None, :])
        outward: Tensor = self.outward(attended_RGTW.transpose(1, 2).flatten(2))
        return outward


class _Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, MLP_FACTOR * width),
            nn.GELU(),
            nn.Linear(MLP_FACTOR * width, width),
        )

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """Transform each token alone. (R, T, E) -> (R, T, E)."""
        del mask
        transformed: Tensor = self.layers(states)
        return transformed
