"""A module whose floating-point buffers survive ``module.bfloat16()`` and ``module.half()``.

DeepSpeed casts the whole module when it trains in half precision. That is meant for parameters;
regression coefficients and rotary frequencies lose digits that nothing gives back.
"""

from collections.abc import Callable
from typing import Any, Self

from torch import Tensor, nn


class KeepsBufferPrecision(nn.Module):
    """Let casts pass to the parameters, and keep every floating-point buffer's type below here."""

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        """Apply ``fn`` (every ``.to()``, ``.cuda()``, ``.half()`` ends here), then restore types.

        Moves to another device are kept: only the type of a buffer is undone, from the values it
        had before the cast.
        """
        before: list[tuple[nn.Module, str, Tensor]] = [
            (module, name, buffer)
            for module in self.modules()
            for name, buffer in module._buffers.items()
            if buffer is not None and buffer.is_floating_point()
        ]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for module, name, original in before:
            cast = module._buffers[name]
            if cast is not None and cast.dtype != original.dtype:
                module._buffers[name] = original.to(cast.device)
        return self
