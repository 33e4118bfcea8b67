"""GRA-M: how much each neighbour counts, recomputed with the current encoder.

Shape legend (this file):
    R  rows      L  seq_len     Z2  width of a key
    K  top_k
"""

import torch
from torch import Tensor

from model.batch import RetrievedWindows
from model.pattern_encoder import AnchoredEncoder, DualEncoder, PatternCode


def weigh_neighbours(
    encoder: DualEncoder | AnchoredEncoder,
    windows: Tensor,
    retrieved: RetrievedWindows,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """Measure the neighbours afresh and weigh them.

    The gradient reaches the encoder through the query, and the shape weight through both sides.
    The neighbours' own codes are made without gradient: they are K times as many windows, and
    the bank's keys are constants between two refreshes anyway.

    Args:
        encoder: The current encoder.
        windows: The queries' own windows, standardised. Shape (R, L), float32.
        retrieved: Their neighbours.
        temperature: ``gram.temperature``.

    Returns:
        ``(distances, weights)``, see :func:`key_distances` and :func:`softmax_weights`. Shape
        (R, K) each, float32.
    """
    query = encoder(windows)
    with torch.no_grad():
        neighbours = encoder(retrieved.windows)
    distances_RK = key_distances(encoder, query, neighbours)
    return distances_RK, softmax_weights(distances_RK, retrieved.valid, temperature)


def key_distances(
    encoder: DualEncoder | AnchoredEncoder, query: PatternCode, neighbours: PatternCode
) -> Tensor:
    """Squared distance of each query to each of its neighbours, differentiable in both codes.

    Args:
        encoder: Whose current weight joins shape and value.
        query: Codes of the queries. Shapes (R, Z).
        neighbours: Codes of their neighbours. Shapes (R, K, Z).

    Returns:
        w * |ds|^2 + (1 - w) * |dv|^2. Shape (R, K).
    """
    # The stored key holds the weight of its own moment: join again, so that w gets its gradient.
    key_RKZ2 = encoder.join(neighbours.shape, neighbours.value)
    return (query.key[:, None] - key_RKZ2).square().sum(dim=-1)


def softmax_weights(distances: Tensor, valid: Tensor, temperature: float) -> Tensor:
    """Softmax of -distance / temperature over the neighbours that exist.

    Args:
        distances: What is in slots without a neighbour does not matter. Shape (R, K).
        valid: True where a neighbour exists. Shape (R, K), bool.
        temperature: Positive.

    Returns:
        Weights that sum to 1 in each row with a neighbour, and exactly 0 in empty slots.
        Shape (R, K).

    Raises:
        ValueError: The shapes differ.
    """
    if distances.shape != valid.shape:
        raise ValueError(
            f"distances and valid must both be (R, K), got shapes {tuple(distances.shape)} and "
            f"{tuple(valid.shape)}: pass one flag per neighbour."
        )
    # The lowest finite number, not -inf: a row without any neighbour would become NaN.
    lowest = torch.finfo(distances.dtype).min
    scores_RK = (-distances / temperature).masked_fill(~valid, lowest)
    return scores_RK.softmax(dim=-1) * valid
