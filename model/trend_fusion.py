"""TAPR trend fusion: let the predicted change act on the normalised forecast.

Shape legend (this file):
    R  rows       H  pred_len      C  4 magnitude classes
"""

import torch
from torch import Tensor, nn

from model.batch import TrendPrediction
from model.config import TaprConfig
from model.float32_buffers import KeepsBufferPrecision
from model.trend_head import NUM_MAGNITUDES

# SPEC 1.1: the trend never moves the forecast by more than half of the expected change.
GATE_CEILING = 0.5


class TrendFusion(KeepsBufferPrecision):
    """Gate the expected change and apply it, from nothing at the first step to all at the last.

    The expected change is the regressed one (additive form, where level 3 is built), scaled by a
    learned factor that starts at zero; otherwise class probabilities times a factor per class,
    learned from zero or fixed. ``trend_fusion=never`` builds no parameter and changes nothing.
    """

    factors: Tensor
    step_weights: Tensor

    def __init__(self, config: TaprConfig, pred_len: int) -> None:
        super().__init__()
        self.mode = config.trend_fusion
        self.form = config.fusion_form
        self.uses_change = config.fusion_form == "additive" and config.builds_change
        self.learned_factors = config.fusion_factors == "learned"
        if self.mode == "never":
            return
        if self.uses_change:
            # One element, not a scalar: DeepSpeed cannot broadcast parameters without an axis.
            self.change_scale = nn.Parameter(torch.zeros(1))
        elif self.learned_factors:
            self.class_factors = nn.Parameter(torch.zeros(NUM_MAGNITUDES))
        else:
            self.register_buffer("factors", torch.tensor(config.fusion_factors), persistent=False)
        # Zero weights: the gate starts at half of its ceiling for every row.
        self.gate = nn.Linear(NUM_MAGNITUDES, 1)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)
        weights_H = torch.linspace(0, 1, pred_len)
        self.register_buffer("step_weights", weights_H, persistent=False)

    def forward(self, forecast: Tensor, prediction: TrendPrediction) -> Tensor:
        """Fuse.

        Args:
            forecast: Normalised forecast. Shape (R, H), float32.
            prediction: What the trend head says about the same rows.

        Returns:
            The fused forecast, float32; ``forecast`` itself with ``trend_fusion=never``, and
            outside training with ``train_only``. Shape (R, H).

        Raises:
            ValueError: ``forecast`` is not (R, H) with the H this layer was built for.
        """
        if self.mode == "never" or (self.mode == "train_only" and not self.training):
            return forecast
        if forecast.ndim != 2 or forecast.shape[1] != len(self.step_weights):
            raise ValueError(
                f"forecast must be (R, H) with pred_len={len(self.step_weights)}, "
                f"got shape {tuple(forecast.shape)}."
            )
        probs_RC = prediction.magnitude.softmax(dim=-1)
        gate_R1 = GATE_CEILING * self.gate(probs_RC.to(self.gate.weight.dtype)).float().sigmoid()
        shift_RH = gate_R1 * self._expected_change(prediction, probs_RC)[:, None]
        shift_RH = shift_RH * self.step_weights
        fused_RH: Tensor = (
            forecast + shift_RH if self.form == "additive" else forecast * (1 + shift_RH)
        )
        return fused_RH

    def _expected_change(self, prediction: TrendPrediction, probs: Tensor) -> Tensor:
        if self.uses_change:
            assert prediction.change is not None  # one TaprConfig builds both layers
            return self.change_scale.float() * prediction.change
        factors_C = self.class_factors if self.learned_factors else self.factors
        return probs @ factors_C.float()
