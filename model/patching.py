"""Cut a context window into overlapping patches and embed each patch.

Shape legend (this file):
    R  rows, one per (window, variate)     P  patches per row
    L  seq_len, in time steps              S  patch_len, in time steps
    D  d_model, embedding width
"""

import torch
from torch import Tensor, nn

from model.config import ModelConfig, num_patches


class PatchEmbedding(nn.Module):
    """Embed each patch of each row; the rows share one map.

    Where the stride does not divide, the oldest value is repeated on the left, so that the last
    patch always ends at the newest step.

    Source: PatchTST, Nie et al. 2023 (arXiv:2211.14730), section 3.1; the convolution is
    TokenEmbedding of Time-LLM, Jin et al. 2024 (arXiv:2310.01728).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.patch_len = config.patch_len
        self.stride = config.stride
        self.project: nn.Conv1d | nn.Linear
        if config.patch_embedding == "conv":
            self.project = nn.Conv1d(
                config.patch_len,
                config.d_model,
                kernel_size=3,
                padding=1,
                padding_mode="circular",
                bias=False,
            )
            nn.init.kaiming_normal_(self.project.weight, mode="fan_in", nonlinearity="leaky_relu")
        else:
            self.project = nn.Linear(config.patch_len, config.d_model, bias=False)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, rows: Tensor) -> Tensor:
        """Cut and embed.

        Args:
            rows: Normalised values, oldest first. Shape (R, L), floating point.

        Returns:
            Patch embeddings, oldest patch first. Shape (R, P, D), of the parameters' type.

        Raises:
            ValueError: ``rows`` is not 2-D, or is shorter than one patch.
        """
        patches_RPS = self.cut(rows).to(self.project.weight.dtype)
        if isinstance(self.project, nn.Conv1d):
            embedded_RPD = self.project(patches_RPS.transpose(1, 2)).transpose(1, 2)
        else:
            embedded_RPD = self.project(patches_RPS)
        dropped_RPD: Tensor = self.dropout(embedded_RPD)
        return dropped_RPD

    def cut(self, rows: Tensor) -> Tensor:
        """Cut rows (R, L) into patches (R, P, S) without embedding them.

        Raises:
            ValueError: ``rows`` is not 2-D, or is shorter than one patch.
        """
        if rows.ndim != 2:
            raise ValueError(f"rows has shape {tuple(rows.shape)}: pass rows of shape (R, L).")
        bounds = self.bounds(rows.shape[1])
        repeats = self.patch_len - bounds[0][1]
        padded = torch.cat([rows[:, :1].expand(-1, repeats), rows], dim=1)
        patches_RPS = padded.unfold(1, self.patch_len, self.stride)
        assert patches_RPS.shape[1] == len(bounds)  # num_patches() and unfold() must agree
        return patches_RPS

    def bounds(self, seq_len: int) -> list[tuple[int, int]]:
        """First step and end of each patch, oldest first; repeats of the oldest value not counted.

        Raises:
            ValueError: The window is shorter than one patch.
        """
        count = num_patches(seq_len, self.patch_len, self.stride)
        ends = [seq_len - self.stride * later for later in reversed(range(count))]
        return [(max(0, end - self.patch_len), end) for end in ends]
