"""The closed-form head: a ridge on [window, inputs], penalty and centring chosen on validation.

Shape legend (this file):
    B  windows of a split     L  seq_len     F  width of the inputs, 0 for none
    N  variates               H  pred_len    R  rows, one per (window, variate)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.retrievers import Windows
from model.anchor_fit import NORMS, GramAccumulator, fit_anchor
from model.linear_anchor import Norm


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadScore:
    """What the ridge that validation chose reaches."""

    norm: Norm
    """What windows and targets were centred on."""

    lam: float
    """Its penalty."""

    val_mse: float
    """On the standardised scale, over all validation rows and steps."""

    test_mse: float
    """The same on test."""


def score_head(
    splits: Mapping[str, Windows], inputs: Mapping[str, Tensor], lambdas: Sequence[float]
) -> HeadScore:
    """Fit the ridge on train, choose on validation, score on test.

    Args:
        splits: Windows of ``train``, ``val`` and ``test``.
        inputs: What each row is given beside its window, for the same splits. Relative to the
            window's last value whatever the norm: the ridge itself can move it by the rest.
            Shape (B, N, F) each.
        lambdas: Penalties to try.

    Returns:
        The best (norm, lambda) on validation, and its scores.

    Source: EVIDENCE 3, "lambda and norm (last or mean) by validation".
    """
    scores = []
    for norm in NORMS:
        sums = {split: _sums(windows, inputs[split], norm) for split, windows in splits.items()}
        fit = fit_anchor([sums["train"]], [sums["val"]], lambdas)
        test = sums["test"]
        error = test.squared_error(fit.weight) / (test.num_rows * len(fit.weight))
        scores.append(
            HeadScore(norm=norm, lam=fit.lam, val_mse=fit.validation_mse, test_mse=float(error))
        )
    return min(scores, key=lambda score: score.val_mse)


def _sums(windows: Windows, inputs: Tensor, norm: Norm) -> GramAccumulator:
    """Sum up the rows [window - loc, inputs] and target - loc."""
    context_BNL = windows.context
    loc_BN1 = context_BNL[..., -1:] if norm == "last" else context_BNL.mean(-1, keepdim=True)
    # The accumulator centres a row on its last column. A zero there leaves what is centred here,
    # where the inputs must not count in the window's mean; its coefficient is always zero.
    columns = [context_BNL - loc_BN1, inputs, torch.zeros_like(loc_BN1)]
    features_RC = torch.cat(columns, dim=-1).flatten(0, 1)
    targets_RH = (windows.target - loc_BN1).flatten(0, 1)
    sums = GramAccumulator(features_RC.shape[1], targets_RH.shape[1], "last")
    sums.add(features_RC, targets_RH)
    return sums
