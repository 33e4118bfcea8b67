"""What a mean hides: gate, match, distances and class probabilities of one micro-batch.

Shape legend (this file):
    R  rows     K  top_k     C  classes
"""

import numpy as np
import torch
from torch import Tensor

from model.batch import ForecastOutput, RetrievedWindows


def collect(output: ForecastOutput, retrieved: RetrievedWindows | None) -> dict[str, np.ndarray]:
    """Copy what :data:`dist_train.metric_catalog.HISTOGRAMS` names; waits for the device.

    Returns:
        Arrays by name, of finite values, one per row; what the run does not build is left out.
    """
    found: dict[str, Tensor] = {}
    if output.gate is not None and output.match is not None:
        found |= {"gate": output.gate, "match": output.match}
    if retrieved is not None and retrieved.distances is not None:
        found["distance"] = retrieved.distances[:, 0][retrieved.valid[:, 0]]  # nearest first
    if output.trend is not None and output.labels is not None:
        labels = output.labels
        found["direction"] = _probability(output.trend.direction, labels.direction)
        found["magnitude"] = _probability(output.trend.magnitude, labels.magnitude)
    arrays = {name: value.detach().float().cpu().numpy() for name, value in found.items()}
    arrays = {f"histograms/{name}": value[np.isfinite(value)] for name, value in arrays.items()}
    return {name: value for name, value in arrays.items() if len(value)}


def _probability(logits: Tensor, classes: Tensor) -> Tensor:
    """What a head gives the true class. (R, C), (R,) int64 -> (R,)."""
    chosen: Tensor = torch.softmax(logits.detach().float(), dim=-1).gather(1, classes[:, None])
    return chosen[:, 0]
