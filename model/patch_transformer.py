"""PatchTST as Transformers has it, one variate at a time: the small transformer to compare with.

Shape legend (this file):
    R  rows, one per (window, variate)   L  seq_len   H  pred_len
"""

from torch import Tensor, nn
from transformers import PatchTSTConfig, PatchTSTForPrediction

PATCH_LEN, STRIDE = 16, 8
NUM_LAYERS, D_MODEL, NUM_HEADS, D_FF = 3, 16, 4, 128
DROPOUT = 0.3


class PatchTransformer(nn.Module):
    """Patches of a row, three transformer blocks, one linear map of all patches to the horizon.

    All variates share its weights and none sees another. Rows are standardised inside.

    Source: Nie et al. 2023 (arXiv:2211.14730), in the size that it gives ETTh1.
    """

    def __init__(self, seq_len: int, pred_len: int) -> None:
        """Build it with fresh weights, drawn from torch's generator.

        Raises:
            ValueError: The window is shorter than two patches.
        """
        super().__init__()
        if seq_len < PATCH_LEN + STRIDE:
            raise ValueError(
                f"data.seq_len={seq_len}: the baseline patchtst cuts patches of {PATCH_LEN} steps, "
                f"{STRIDE} apart, and needs {PATCH_LEN + STRIDE} at least: leave it out, or "
                "lengthen the window."
            )
        config = PatchTSTConfig(
            num_input_channels=1,
            context_length=seq_len,
            prediction_length=pred_len,
            patch_length=PATCH_LEN,
            patch_stride=STRIDE,
            num_hidden_layers=NUM_LAYERS,
            d_model=D_MODEL,
            num_attention_heads=NUM_HEADS,
            ffn_dim=D_FF,
            attention_dropout=DROPOUT,
            ff_dropout=DROPOUT,
            path_dropout=0.0,
            head_dropout=0.0,
            pooling_type=None,  # Transformers' own default would forget which patch is which
            scaling="std",
            loss="mse",
            do_mask_input=False,
        )
        self.network = PatchTSTForPrediction(config)

    def forward(self, rows: Tensor) -> Tensor:
        """Forecast rows. (R, L) -> (R, H)."""
        output_R1H: Tensor = self.network(past_values=rows[..., None]).prediction_outputs
        return output_R1H[..., 0]
