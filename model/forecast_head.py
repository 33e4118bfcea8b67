"""Read the forecast from the language model's hidden states at the patch positions.

Shape legend (this file):
    R  rows, one per (window, variate)     E  hidden width of the language model
    P  patches per row                     H  pred_len, in time steps
    F  d_ff, features kept of each position
"""

from torch import Tensor, nn


class ForecastHead(nn.Module):
    """Keep the first ``d_ff`` features of every patch position, flatten, map to the horizon.

    Source: FlattenHead of Time-LLM, Jin et al. 2024 (arXiv:2310.01728). Its dropout falls on the
    forecast itself; ours falls on the features, so that no forecast step is ever zeroed.
    """

    def __init__(
        self,
        num_patches: int,
        d_ff: int,
        d_llm: int,
        pred_len: int,
        dropout: float,
        zero_init: bool,
    ) -> None:
        """Build the head.

        Args:
            num_patches: Patch positions per row, P.
            d_ff: Features kept of each position.
            d_llm: Hidden width of the language model, E.
            pred_len: Horizon, H.
            dropout: Dropout probability of the features.
            zero_init: Start with a forecast of exactly zero, for a path that learns a correction.

        Raises:
            ValueError: ``d_ff`` is wider than the language model.
        """
        super().__init__()
        if d_ff > d_llm:
            raise ValueError(
                f"model.d_ff={d_ff} is more than the {d_llm} features per position that the "
                f"backbone has: lower model.d_ff to at most {d_llm}, or take a wider backbone."
            )
        self.num_patches = num_patches
        self.d_ff = d_ff
        self.dropout = nn.Dropout(dropout)
        self.project = nn.Linear(num_patches * d_ff, pred_len)
        if zero_init:
            nn.init.zeros_(self.project.weight)
            nn.init.zeros_(self.project.bias)

    def forward(self, states: Tensor) -> Tensor:
        """Map hidden states to a normalised forecast.

        Args:
            states: Hidden states at the patch positions. Shape (R, P, E), floating point.

        Returns:
            Normalised forecast. Shape (R, H), of the parameters' type.

        Raises:
            ValueError: Another number of patches than this head was built for.
        """
        if states.ndim != 3 or states.shape[1] != self.num_patches:
            raise ValueError(
                f"states has shape {tuple(states.shape)}: pass (R, P, E) with the "
                f"P={self.num_patches} patch positions this head was built for."
            )
        features_RPF = states[..., : self.d_ff].to(self.project.weight.dtype)
        forecast_RH: Tensor = self.project(self.dropout(features_RPF.flatten(1)))
        return forecast_RH
