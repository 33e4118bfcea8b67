"""GRA-M retrieval tokens: tell the language model what was found, and how well it matches.

Shape legend (this file):
    R  rows     D  d_model     E  width of the language model
"""

import torch
from torch import Tensor, nn


class RetrievalTokens(nn.Module):
    """Two tokens: the projected retrieved context, and a confidence embedding.

    The confidence embedding moves on a line from "no match" to "full match". A row without a
    neighbour has context 0 and match 0, hence two learned constants that mean "nothing found".

    Source: SPEC 1.2.
    """

    def __init__(self, d_model: int, d_llm: int) -> None:
        super().__init__()
        self.context = nn.Linear(d_model, d_llm)
        self.confidence = nn.Linear(1, d_llm)

    def forward(self, context: Tensor, match: Tensor) -> Tensor:
        """Make the tokens.

        Args:
            context: Weighted mean of the embedded futures. Shape (R, D).
            match: Match score in [0, 1]. Shape (R,).

        Returns:
            Context token, then confidence token, in the compute type. Shape (R, 2, E).

        Raises:
            ValueError: The shapes do not fit.
        """
        if context.ndim != 2 or match.shape != context.shape[:1]:
            raise ValueError(
                "retrieval tokens need context (R, D) and match (R,), got shapes "
                f"{tuple(context.shape)} and {tuple(match.shape)}."
            )
        dtype = self.context.weight.dtype
        context_RE = self.context(context.to(dtype))
        confidence_RE = self.confidence(match[:, None].to(dtype))
        return torch.stack([context_RE, confidence_RE], dim=1)
