"""Begin with the weights of another model: another horizon, another width, an older format."""

from collections.abc import Mapping

import torch
from torch import Tensor

from model.resize import resize_last_dim


def take_over(
    theirs: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[str]]:
    """Choose the weights to begin with: theirs where they fit, or can be made to fit.

    A tensor that differs in the length of one axis is interpolated along it; its own stays where
    theirs is missing or differs in more.

    Args:
        theirs: Trained parameters of another model, by name.
        own: Those of this model, freshly initialised.

    Returns:
        One for each of ``own``, of its shape; and in words what was stretched or left out.

    Raises:
        ValueError: Not a single one fits.
    """
    chosen: dict[str, Tensor] = {}
    widths: dict[tuple[int, int], int] = {}
    fresh: list[str] = []
    for name, value in own.items():
        other = theirs.get(name)
        fitted = None if other is None else _fit(other, value.shape)
        if other is None or fitted is None:
            fresh.append(name)
            chosen[name] = value
            continue
        chosen[name] = fitted.to(value.dtype)
        for old, new in zip(other.shape, value.shape, strict=True):
            if old != new:
                widths[old, new] = widths.get((old, new), 0) + 1
    if len(fresh) == len(own):
        raise ValueError(
            "none of the checkpoint's weights fits this model: give the model.*, tapr.* and "
            "gram.* settings that it was trained with."
        )
    told = [
        f"warning: {count} weights of width {old} were aligned to width {new} by linear "
        "interpolation"
        for (old, new), count in widths.items()
    ]
    if fresh:
        shown = ", ".join(fresh[:4]) + (", ..." if len(fresh) > 4 else "")
        told.append(f"warning: {len(fresh)} weights begin anew, the checkpoint has none: {shown}")
    return chosen, told


def _fit(value: Tensor, shape: torch.Size) -> Tensor | None:
    """Give a tensor another shape by stretching one axis; None where that is not enough."""
    if value.ndim != len(shape):
        return None
    axes = [axis for axis in range(value.ndim) if value.shape[axis] != shape[axis]]
    if not axes:
        return value.clone()
    if len(axes) > 1:
        return None
    axis = axes[0]
    return (
        resize_last_dim(value.float().movedim(axis, -1), shape[axis]).movedim(-1, axis).contiguous()
    )
