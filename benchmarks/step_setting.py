"""What both contestants of the step benchmark get: shape, words, windows, optimizer."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.turns import Usage

DESCRIPTION = (
    "Oil temperature and six power loads of an electricity transformer, measured every hour over "
    "two years in two counties of one province."
)
"""Of the data; as long as the one in the published code."""

PROMPT_WORDS = (
    f"Dataset description: {DESCRIPTION} Task description: forecast the next steps given the "
    "previous steps information; Input statistics: min value, max value, median value, the trend "
    "of input is upward downward flat, top lags are : none start end prompt"
)
"""Words that the prompts of both sides are made of."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """Shape of the model and of a batch; the same on both sides."""

    windows: int = 4
    variates: int = 7
    seq_len: int = 512
    pred_len: int = 96
    patch_len: int = 16
    stride: int = 8
    d_model: int = 32
    d_ff: int = 128
    n_heads: int = 8
    num_prototypes: int = 1000  # fixed in the published code
    dropout: float = 0.1
    width: int = 768
    layers: int = 6
    backbone_heads: int = 12
    vocab_size: int = 50257

    def batch(self, number: int) -> tuple[Tensor, Tensor]:
        """Make one batch: noisy waves of several periods, the same for the same number.

        Returns:
            Windows (B, L, N) and the steps that follow them (B, H, N), float32.
        """
        rng = np.random.default_rng(number)
        shape = (self.windows, 1, self.variates)
        steps = np.arange(self.seq_len + self.pred_len)[None, :, None]
        waves = sum(
            np.sin(2 * np.pi * (steps / period + rng.random(shape))) for period in (12, 24, 168)
        )
        series = waves + rng.normal(size=(self.windows, steps.shape[1], self.variates))
        whole = torch.from_numpy(series.astype(np.float32))
        return whole[:, : self.seq_len], whole[:, self.seq_len :]


QUICK = Setting(
    windows=2,
    seq_len=96,
    pred_len=24,
    d_ff=32,
    width=64,
    layers=2,
    backbone_heads=4,
    vocab_size=2000,
)


class MasterOptimizer:
    """An optimizer of parameters that may be of half precision: it updates float32 copies.

    As DeepSpeed does for both sides. Float32 parameters are updated themselves.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        make: Callable[[nn.ParameterList], torch.optim.Optimizer],
    ) -> None:
        """Copy what is not float32, and make the optimizer over the copies."""
        self.parameters = list(parameters)
        self.masters = [
            p if p.dtype == torch.float32 else nn.Parameter(p.detach().float())
            for p in self.parameters
        ]
        self.optimizer = make(nn.ParameterList(self.masters))

    def timed_step(self, compute_loss: Callable[[], Tensor]) -> dict[str, float]:
        """Make one training step, and say what it took: the same for both sides.

        Args:
            compute_loss: Makes the inputs, runs forward and returns the loss; in the time.

        Returns:
            ``seconds``, ``peak_gib``, ``idle_gib`` and ``loss``.
        """
        with Usage() as usage:
            self.zero_grad()
            loss = compute_loss()
            loss.backward()  # type: ignore[no-untyped-call]
            self.step()
            value = loss.item()
        self.zero_grad()
        return {
            "seconds": usage.seconds,
            "peak_gib": usage.peak_gib,
            "idle_gib": usage.idle_gib,
            "loss": value,
        }

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for parameter in (*self.parameters, *self.masters):
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Update all parameters that have a gradient."""
        pairs = zip(self.parameters, self.masters, strict=True)
        cast = [(p, master) for p, master in pairs if p is not master and p.grad is not None]
        for parameter, master in cast:
            assert parameter.grad is not None
            master.grad, parameter.grad = parameter.grad.float(), None
        self.optimizer.step()
        for parameter, master in cast:
            parameter.copy_(master)
