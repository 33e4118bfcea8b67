"""TAPR-DM: see the patch sequence at several resolutions, split each into trend and season.

Shape legend (this file):
    R  rows       D  d_model
    P  patches    C  cells of one scale, C = ceil(P / 4^i)
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.resize import resize_last_dim

# Odd, so that the moving average is centred; five patches of stride 8 span about 50 time steps.
MOVING_AVERAGE_CELLS = 5


class Decomposition(NamedTuple):
    """What the decomposition found."""

    features: Tensor
    """The patches with the fused scales added through the residual gate. Shape (R, P, D)."""

    fused: Tensor
    """Weighted sum of the scales. Shape (R, P, D)."""

    trend: Tensor
    """Weighted sum of the trends of the scales. Shape (R, P, D)."""

    scale_trends: list[Tensor]
    """The trend of each scale, finest first, upsampled. n_scales times (R, P, D)."""


class MultiScaleDecomposition(nn.Module):
    """Pool, convolve, split, upsample, attend from coarse to fine, weigh the scales.

    Source: SPEC 1.1. The split is the moving average of Autoformer, Wu et al. 2021
    (arXiv:2106.13008), section 3.1; the mixing of scales follows TimeMixer, Wang et al. 2024
    (arXiv:2405.14616), section 3.2.
    """

    def __init__(
        self, d_model: int, n_scales: int, *, gate_init: float = 0.0, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.factors = [4**i for i in range(n_scales)]
        self.scales = nn.ModuleList(ScaleBranch(d_model) for _ in self.factors)
        self.descend = nn.ModuleList(CrossScaleAttention(d_model) for _ in self.factors[1:])
        self.scale_logits = nn.Parameter(torch.zeros(n_scales))
        # One element, not a scalar: DeepSpeed cannot broadcast parameters without an axis.
        self.residual_gate = nn.Parameter(torch.tensor([float(gate_init)]))
        self.dropout = nn.Dropout(dropout)

    def forward(self, patches: Tensor) -> Decomposition:
        """Decompose.

        Args:
            patches: Patch embeddings, oldest patch first. Shape (R, P, D), floating point.

        Returns:
            The decomposition; with a residual gate of 0 its features equal ``patches``.

        Raises:
            ValueError: ``patches`` is not 3-D.
        """
        if patches.ndim != 3:
            raise ValueError(f"patches must be (R, P, D), got shape {tuple(patches.shape)}.")

        trends_RPD: list[Tensor] = []
        scales_RPD: list[Tensor] = []
        for factor, scale in zip(self.factors, self.scales, strict=True):
            trend_RCD, mixed_RCD = scale(pool_patches(patches, factor))
            trends_RPD.append(_upsample(trend_RCD, patches.shape[1]))
            scales_RPD.append(_upsample(mixed_RCD, patches.shape[1]))

        refined_RPD = scales_RPD[-1:]  # the coarsest scale has nothing above it to read
        for finer_RPD, attend in zip(scales_RPD[-2::-1], self.descend, strict=True):
            refined_RPD.insert(0, attend(finer_RPD, refined_RPD[0]))

        weights = self.scale_logits.softmax(0)
        fused_RPD = _weighted_sum(refined_RPD, weights)
        features_RPD = patches + self.residual_gate * self.dropout(fused_RPD)
        return Decomposition(
            features=features_RPD,
            fused=fused_RPD,
            trend=_weighted_sum(trends_RPD, weights),
            scale_trends=trends_RPD,
        )


class ScaleBranch(nn.Module):
    """One resolution: depthwise-separable convolution, split, and trend and season mixed."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv1d(d_model, d_model, 3, padding=1, groups=d_model)
        self.pointwise = nn.Conv1d(d_model, d_model, 1)
        self.mix = nn.Linear(2 * d_model, d_model)

    def forward(self, cells: Tensor) -> tuple[Tensor, Tensor]:
        """Return the trend and the mixture of trend and season. (R, C, D) -> (R, C, D) each."""
        convolved_RDC = self.pointwise(F.gelu(self.depthwise(cells.transpose(1, 2))))
        trend_RCD, season_RCD = split_trend(convolved_RDC.transpose(1, 2))
        return trend_RCD, self.mix(torch.cat([trend_RCD, season_RCD], dim=-1))


class CrossScaleAttention(nn.Module):
    """The finer scale reads the coarser one, and keeps what it had."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.query = nn.Linear(d_model, d_model)
        # Without a bias: softmax ignores what all keys share, so it would never get a gradient.
        self.key = nn.Linear(d_model, d_model, bias=False)
        self.value = nn.Linear(d_model, d_model)

    def forward(self, finer: Tensor, coarser: Tensor) -> Tensor:
        """Refine. (R, P, D), (R, P, D) -> (R, P, D)."""
        read_RPD = F.scaled_dot_product_attention(
            self.query(finer), self.key(coarser), self.value(coarser)
        )
        return finer + read_RPD


def pool_patches(patches: Tensor, factor: int) -> Tensor:
    """Average runs of ``factor`` patches; the last run averages the patches it has.

    Args:
        patches: Shape (R, P, D).
        factor: Patches per cell, at least 1; more than P give one cell.

    Returns:
        The cells, oldest first. Shape (R, ceil(P / factor), D).
    """
    width = min(factor, patches.shape[1])
    pooled_RDC = F.avg_pool1d(patches.transpose(1, 2), width, stride=width, ceil_mode=True)
    return pooled_RDC.transpose(1, 2)


def split_trend(cells: Tensor) -> tuple[Tensor, Tensor]:
    """Split into a centred moving average and the rest.

    The ends are repeated by concatenation: replicate padding adds in no fixed order in its
    backward pass on CUDA.

    Args:
        cells: One scale, oldest cell first. Shape (R, C, D).

    Returns:
        ``(trend, season)``, which sum to ``cells``. Shape (R, C, D) each.
    """
    reach = MOVING_AVERAGE_CELLS // 2
    first_RD, last_RD = cells[:, :1].expand(-1, reach, -1), cells[:, -1:].expand(-1, reach, -1)
    padded_RDC = torch.cat([first_RD, cells, last_RD], dim=1).transpose(1, 2)
    trend_RCD = F.avg_pool1d(padded_RDC, MOVING_AVERAGE_CELLS, stride=1).transpose(1, 2)
    return trend_RCD, cells - trend_RCD


def _upsample(cells: Tensor, num_patches: int) -> Tensor:
    return resize_last_dim(cells.transpose(1, 2), num_patches).transpose(1, 2)


def _weighted_sum(scales: list[Tensor], weights: Tensor) -> Tensor:
    return torch.stack([weight * scale for weight, scale in zip(weights, scales, strict=True)]).sum(
        0
    )
