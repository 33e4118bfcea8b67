"""TAPR as the forecaster uses it: one module around its four parts.

Shape legend (this file):
    R  rows     P  patches     D  d_model     E  width of the language model
"""

from torch import Tensor, nn

from model.batch import TrendPrediction
from model.config import ModelConfig, TaprConfig
from model.decomposition import MultiScaleDecomposition
from model.trend_fusion import TrendFusion
from model.trend_head import TrendHead
from model.trend_labels import TrendThresholds


class TrendRouter(nn.Module):
    """TAPR: the decomposition, the trend head, the fusion, and the thresholds of its labels."""

    def __init__(self, config: ModelConfig, tapr: TaprConfig, pred_len: int, d_llm: int) -> None:
        super().__init__()
        self.decomposition = MultiScaleDecomposition(
            config.d_model, tapr.n_scales, gate_init=tapr.gate_init, dropout=config.dropout
        )
        self.head = TrendHead(
            config.d_model, d_llm, builds_change=tapr.builds_change, dropout=config.dropout
        )
        self.fusion = TrendFusion(tapr, pred_len)
        self.thresholds = TrendThresholds(tapr.trend_thresholds)

    def forward(self, patches: Tensor) -> tuple[Tensor, TrendPrediction, Tensor]:
        """Route. (R, P, D) -> features (R, P, D), prediction, trend token (R, 1, E)."""
        decomposition = self.decomposition(patches)
        prediction, token_R1E = self.head(decomposition.trend)
        return decomposition.features, prediction, token_R1E
