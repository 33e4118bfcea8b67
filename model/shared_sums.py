"""One ridge of several sources: each step is learnt from the sources that forecast it."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import torch.nn.functional as F

from model.anchor_fit import LAMBDAS, AnchorFit, GramAccumulator, fit_spans

Sums = list[GramAccumulator]
"""One accumulator per norm."""


class SharedSums:
    """Sums over the windows of sources, those of like horizon joined."""

    def __init__(self) -> None:
        self._of_horizon: dict[int, tuple[Sums, Sums]] = {}

    def add(
        self, training: Sequence[GramAccumulator], validation: Sequence[GramAccumulator]
    ) -> None:
        """Add a source.

        Args:
            training: One accumulator per norm, over its training windows; not changed.
            validation: The same norms in the same order, over its validation windows.
        """
        horizon = training[0].num_steps
        known = self._of_horizon.get(horizon)
        if known is None:
            self._of_horizon[horizon] = _copied(training), _copied(validation)
            return
        for mine, theirs in zip([*known[0], *known[1]], [*training, *validation], strict=True):
            mine.merge(theirs)

    def fit(self, lambdas: Sequence[float] = LAMBDAS) -> AnchorFit:
        """Solve one ridge for all, its norm and penalty chosen on the validation of all.

        Args:
            lambdas: Penalties to try.

        Returns:
            Weights of as many steps as the longest horizon has.

        Raises:
            ValueError: As :func:`~model.anchor_fit.fit_anchor`.
        """
        return fit_spans(self._spans(0), self._spans(1), lambdas)

    def _spans(self, which: int) -> list[Sums]:
        """For each norm: sums of the steps up to each horizon, over all that forecast these."""
        spans = []
        for begin, end in pairwise([0, *sorted(self._of_horizon)]):
            first, *others = (
                [sums.steps(begin, end) for sums in both[which]]
                for horizon, both in self._of_horizon.items()
                if horizon >= end
            )
            joined = _copied(first) if others else first
            for other in others:
                for mine, theirs in zip(joined, other, strict=True):
                    mine.merge(theirs)
            spans.append(joined)
        return [list(of_norm) for of_norm in zip(*spans, strict=True)]


def _copied(sums: Sequence[GramAccumulator]) -> Sums:
    return [one.copied() for one in sums]


def with_all_steps(fit: AnchorFit, pred_len: int) -> AnchorFit:
    """Give a ridge of fewer steps weights of 0 for the rest, where it forecasts what it centres on.

    Args:
        fit: The ridge.
        pred_len: Steps that it gets.
    """
    return replace(fit, weight=F.pad(fit.weight, (0, 0, 0, pred_len - fit.weight.shape[-2])))
