"""TAPR-C2F: read the trend from coarse to fine, and say it to the language model as one token.

Shape legend (this file):
    R  rows       D  d_model      C  4 magnitude classes
    P  patches    E  width of the language model
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.batch import TrendPrediction

NUM_DIRECTIONS = 3  # down, flat, up
NUM_MAGNITUDES = 4  # strong down, weak down, weak up, strong up


class TrendHead(nn.Module):
    """Direction, then magnitude given the direction, then the change given both.

    Source: SPEC 1.1; the coarse-to-fine hierarchy follows HCAN, Sun et al., AAAI 2025.
    """

    def __init__(
        self, d_model: int, d_llm: int, *, builds_change: bool, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.read = nn.Linear(2 * d_model, d_model)
        self.dropout = nn.Dropout(dropout)
        self.direction = nn.Linear(d_model, NUM_DIRECTIONS)
        self.magnitude = nn.Linear(d_model + NUM_DIRECTIONS, NUM_MAGNITUDES)
        self.change = ChangeRegression(d_model) if builds_change else None
        self.class_embeddings = nn.Parameter(torch.randn(NUM_MAGNITUDES, d_model) * 0.02)
        self.to_token = nn.Linear(d_model, d_llm)

    def forward(self, trend: Tensor) -> tuple[TrendPrediction, Tensor]:
        """Predict and make the token.

        Args:
            trend: Weighted trend of the decomposition, oldest patch first. Shape (R, P, D).

        Returns:
            ``(prediction, token)``: float32 logits and change, and the trend token in the
            compute type. The token has shape (R, 1, E).

        Raises:
            ValueError: ``trend`` is not 3-D.
        """
        if trend.ndim != 3:
            raise ValueError(f"trend must be (R, P, D), got shape {tuple(trend.shape)}.")
        # The newest patch says where the window ends, the mean what it comes from.
        summary_RD = torch.cat([trend.mean(dim=1), trend[:, -1]], dim=-1)
        hidden_RD = self.dropout(F.gelu(self.read(summary_RD)))

        direction_R3 = self.direction(hidden_RD)
        direction_probs_R3 = direction_R3.softmax(dim=-1)
        magnitude_RC = self.magnitude(torch.cat([hidden_RD, direction_probs_R3], dim=-1))
        magnitude_probs_RC = magnitude_RC.softmax(dim=-1)

        change_R = None
        if self.change is not None:
            # Predicted, not true classes: evaluation has no labels to condition on.
            change_R = self.change(hidden_RD, magnitude_probs_RC)
        token_RE = self.to_token(magnitude_probs_RC @ self.class_embeddings)
        prediction = TrendPrediction(
            direction=direction_R3.float(), magnitude=magnitude_RC.float(), change=change_R
        )
        return prediction, token_RE[:, None]


class ChangeRegression(nn.Module):
    """Level 3: the change in normalised units, conditioned on the predicted classes."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(d_model + NUM_MAGNITUDES, d_model)
        self.out = nn.Linear(d_model, 1)

    def forward(self, hidden: Tensor, magnitude_probs: Tensor) -> Tensor:
        """Regress. (R, D), (R, C) -> (R,), float32."""
        joint_RD = F.gelu(self.hidden(torch.cat([hidden, magnitude_probs], dim=-1)))
        change_R1: Tensor = self.out(joint_RD)
        return change_R1.squeeze(-1).float()
