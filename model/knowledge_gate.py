"""GRA-M AKG: decide, row by row, between the present and the retrieved histories.

Shape legend (this file):
    R  rows         D  d_model      H  pred_len
    P  patches      K  top_k
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.resize import resize_last_dim

# Weights below it count as this small in the attention prior: log(0) has no gradient.
SMALLEST_PRIOR = 1e-6

# Logit of an empty slot: its exponential is 0, and unlike the lowest float it cannot overflow.
EMPTY_SLOT = -1e4


class GatedKnowledge(NamedTuple):
    """What the gate let through."""

    features: Tensor
    """The patches with the gated knowledge added. Shape (R, P, D)."""

    context: Tensor
    """Weighted mean of the embedded futures, 0 in rows without neighbour. Shape (R, D)."""

    gate: Tensor
    """Trust in the present, in (0, 1); 1 in rows without neighbour. Shape (R,), float32."""

    match: Tensor
    """Weighted mean of the match scores; 0 in rows without neighbour. Shape (R,), float32."""


class KnowledgeGate(nn.Module):
    """Score the retrieved futures, gate them against the patches, add the result as a residual.

    Every branch runs for every row; rows without a neighbour are masked afterwards, as ranks that
    take different branches would mix up their gradients.

    Source: SPEC 1.2, adaptive knowledge gating.
    """

    def __init__(
        self, d_model: int, pred_len: int, *, gate_init: float = 0.0, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.pred_len = pred_len
        self.encode_current = nn.Linear(d_model, d_model)
        self.embed_future = nn.Sequential(
            nn.Linear(pred_len, d_model), nn.GELU(), nn.Linear(d_model, d_model)
        )
        self.score = nn.Sequential(
            nn.Linear(3 * d_model, d_model), nn.GELU(), nn.Linear(d_model, 1)
        )
        self.decide = nn.Sequential(
            nn.Linear(2 * d_model + 1, d_model), nn.GELU(), nn.Linear(d_model, 1)
        )
        self.query = nn.Linear(d_model, d_model)
        # Without a bias: softmax ignores what all keys share, so it would never get a gradient.
        self.key = nn.Linear(d_model, d_model, bias=False)
        self.value = nn.Linear(d_model, d_model)
        self.dropout = nn.Dropout(dropout)
        # One element, not a scalar: DeepSpeed cannot broadcast parameters without an axis.
        self.residual_gate = nn.Parameter(torch.tensor([float(gate_init)]))

    def forward(
        self, patches: Tensor, futures: Tensor, weights: Tensor, valid: Tensor
    ) -> GatedKnowledge:
        """Gate.

        Args:
            patches: Current patch features. Shape (R, P, D), the compute type.
            futures: Normalised futures of the neighbours. Shape (R, K, H); another horizon than
                ``pred_len`` is resized, and it is for the caller to warn about it.
            weights: Weights of the neighbours, 0 in empty slots. Shape (R, K), float32.
            valid: True where a neighbour exists. Shape (R, K), bool.

        Returns:
            The gated knowledge; with a residual gate of 0 its features equal ``patches``.

        Raises:
            ValueError: The shapes do not fit.
        """
        _check_shapes(patches, futures, weights, valid)
        dtype = self.encode_current.weight.dtype
        found_R = valid.any(dim=1)
        # Values in empty slots must not reach anything, not even as 0 * inf.
        futures = futures.masked_fill(~valid[..., None], 0)
        items_RKD = self.embed_future(resize_last_dim(futures, self.pred_len).to(dtype))
        current_RD = F.gelu(self.encode_current(patches)).mean(dim=1)

        context_RD = (weights[..., None] * items_RKD.float()).sum(dim=1)
        match_R = (weights * self._match(current_RD, items_RKD)).sum(dim=1)
        decision = torch.cat([current_RD, context_RD.to(dtype), match_R[:, None].to(dtype)], dim=-1)
        gate_R = self.decide(decision).squeeze(-1).float().sigmoid()
        gate_R = torch.where(found_R, gate_R, 1.0)

        # Where nothing was found the gate is 1: what attention made of empty slots counts 0.
        retrieved_RPD = self.dropout(self._attend(patches, items_RKD, weights, valid))
        gate_R11 = gate_R[:, None, None].to(patches.dtype)
        gated_RPD = gate_R11 * patches + (1 - gate_R11) * retrieved_RPD
        return GatedKnowledge(
            features=patches + self.residual_gate * gated_RPD,
            context=context_RD.to(dtype),
            gate=gate_R,
            match=match_R,
        )

    def _match(self, current: Tensor, items: Tensor) -> Tensor:
        """Score how each neighbour fits the present. (R, D), (R, K, D) -> (R, K), float32."""
        current_RKD = current[:, None].expand_as(items)
        pairs = torch.cat([current_RKD, items, current_RKD * items], dim=-1)
        scores_RK1: Tensor = self.score(pairs)
        return scores_RK1.squeeze(-1).float().sigmoid()

    def _attend(self, patches: Tensor, items: Tensor, weights: Tensor, valid: Tensor) -> Tensor:
        """Cross-attend from patches to neighbours, whose weights are the prior. -> (R, P, D)."""
        prior_RK = weights.clamp_min(SMALLEST_PRIOR).log().masked_fill(~valid, EMPTY_SLOT)
        logits_RPK = self.query(patches) @ self.key(items).transpose(1, 2)
        logits_RPK = logits_RPK.float() / patches.shape[-1] ** 0.5 + prior_RK[:, None]
        attention_RPK = logits_RPK.softmax(dim=-1).to(items.dtype)
        read_RPD: Tensor = attention_RPK @ self.value(items)
        return read_RPD


def _check_shapes(patches: Tensor, futures: Tensor, weights: Tensor, valid: Tensor) -> None:
    rows_and_slots = futures.shape[:2]
    fits = patches.ndim == 3 and futures.ndim == 3 and len(patches) == len(futures)
    if not fits or weights.shape != rows_and_slots or valid.shape != rows_and_slots:
        raise ValueError(
            "the gate needs patches (R, P, D), futures (R, K, H), weights and valid (R, K), got "
            f"shapes {tuple(patches.shape)}, {tuple(futures.shape)}, {tuple(weights.shape)} and "
            f"{tuple(valid.shape)}."
        )
