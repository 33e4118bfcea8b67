"""The closed form behind the anchor: sums over windows, and the ridges that are solved from them.

Every rank adds its share of the windows, an all-reduce joins the sums, and each penalty is then
solved and scored on validation without another pass over the data.

Shape legend (this file):
    R  rows, one per (window, variate)     L  seq_len, in time steps
    C  rows in one chunk                   H  pred_len, in time steps
    V  variates with weights of their own  B  windows
    I  inputs of the anchor, see :mod:`model.linear_anchor`
"""

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from itertools import chain, product

import torch
import torch.nn.functional as F
from torch import Tensor

from model.config import NO_EXTENSION, Calendar, Extension, num_anchor_inputs
from model.linear_anchor import (
    LinearAnchor,
    Norm,
    anchor_inputs,
    by_variate,
    check_columns,
    check_variates,
    of_rows,
)
from model.random_features import AT_PENALTY, random_projection

NORMS: tuple[Norm, ...] = ("last", "mean")
"""What rows are centred on; both are tried on validation."""

LAMBDAS = (1e1, 1e2, 1e3, 1e4)
"""Ridge penalties tried on validation; the range of EVIDENCE 1."""

DEVIATION_LAMBDAS = (*LAMBDAS, 1e5, 1e6)
"""Ridge penalties tried for how far a variate's own weights are from the shared ones."""

CALENDAR_PENALTY: dict[Calendar, float] = {"none": 1, "year": 30, "day": 1}
"""Ridge penalty of what weights change with a calendar, in penalties of the weights themselves."""

CHUNK_ROWS = 8192
"""Rows of 512 inputs that are converted to float64 at a time, 32 MiB; of more inputs, fewer."""


class GramAccumulator:
    """Sums over windows from which a ridge is solved, or any linear map is scored exactly.

    With ``num_variates`` above 1 there are sums for each of them, and :meth:`pooled` joins them.
    Add up :attr:`tensors` over the ranks (all-reduce, in place) before reading the sums.
    """

    def __init__(
        self,
        seq_len: int,
        pred_len: int,
        norm: Norm,
        *,
        reads_future: bool = False,
        extension: Extension = NO_EXTENSION,
        num_variates: int = 1,
        num_steps: int | None = None,
    ) -> None:
        self.norm: Norm = norm
        self.seq_len = seq_len
        self.num_steps = num_steps or pred_len
        """Steps that are forecast, the first ones of ``pred_len``. H here and below."""
        self.num_variates = num_variates
        self.extension = extension
        self.widths = {
            part: num_anchor_inputs(seq_len, pred_len, reads_future=reads_future, extension=part)
            for part in extension.parts
        }
        """Inputs without the extension, with its calendar, and with all of it."""
        self._projection: Tensor | None = None
        if extension.random_features:
            drawn = random_projection(seq_len, extension.random_features)
            self._projection = drawn.to(torch.float64)
        num_inputs = self.widths[extension]
        each = () if num_variates == 1 else (num_variates,)
        self.gram = torch.zeros(*each, num_inputs, num_inputs, dtype=torch.float64)
        """Sum of x x^T over centred rows. Shape (I, I), or (V, I, I)."""
        self.cross = torch.zeros(*each, num_inputs, self.num_steps, dtype=torch.float64)
        """Sum of x y^T over centred rows. Shape (I, H), or (V, I, H)."""
        self.target_square = torch.zeros(*each, self.num_steps, dtype=torch.float64)
        """Sum of y^2 over centred targets, of each step. Shape (H,), or (V, H)."""
        self.num_rows = torch.zeros((), dtype=torch.float64)
        """Rows added, of all variates. Shape ()."""

    @property
    def tensors(self) -> list[Tensor]:
        """All sums, float64, for an in-place all-reduce by the caller."""
        return [self.gram, self.cross, self.target_square, self.num_rows]

    def add(
        self,
        windows: Tensor,
        targets: Tensor,
        retrieved: Tensor | None = None,
        calendar_phase: Tensor | None = None,
    ) -> None:
        """Add rows to the sums.

        Args:
            windows: Windows, oldest first; with ``num_variates``, those of each window one after
                another. Shape (R, L), any floating type.
            targets: What followed each. Shape (R, H), any floating type.
            retrieved: What retrieval forecasts for each, exactly with ``reads_future``.
                Shape (R, H), any floating type.
            calendar_phase: As :meth:`LinearAnchor.forward` takes it. Shape (B, 4).

        Raises:
            ValueError: Shapes do not match each other or this accumulator.
        """
        check_columns("windows", windows, self.seq_len)
        check_columns("targets", targets, self.cross.shape[-1])
        check_variates(len(windows), self.num_variates)
        if len(windows) != len(targets):
            raise ValueError(
                f"windows has {len(windows)} rows and targets {len(targets)}: pass one target "
                "per window."
            )
        phase_R4 = None
        if self.extension.calendar != "none":
            assert calendar_phase is not None
            phase_R4 = of_rows(calendar_phase, len(windows)).to(self.gram)
        rows = CHUNK_ROWS * 512 // max(512, self.gram.shape[-1])
        step = max(1, rows // self.num_variates) * self.num_variates
        for start in range(0, len(windows), step):
            part = slice(start, start + step)
            x_CL, y_CH = windows[part].to(self.gram), targets[part].to(self.gram)
            loc_C1 = x_CL[:, -1:] if self.norm == "last" else x_CL.mean(dim=1, keepdim=True)
            x_CI = anchor_inputs(
                x_CL,
                loc_C1,
                None if retrieved is None else retrieved[part].to(self.gram),
                self.extension.calendar,
                None if phase_R4 is None else phase_R4[part],
                self._projection,
            )
            check_columns("windows with what is retrieved", x_CI, self.cross.shape[-2])
            y_CH = y_CH - loc_C1
            self.num_rows += len(x_CI)
            if self.num_variates == 1:
                self.gram.addmm_(x_CI.T, x_CI)
                self.cross.addmm_(x_CI.T, y_CH)
                self.target_square += y_CH.square().sum(dim=0)
                continue
            x_VCI, y_VCH = (by_variate(rows, self.num_variates) for rows in (x_CI, y_CH))
            self.gram.baddbmm_(x_VCI.mT, x_VCI)
            self.cross.baddbmm_(x_VCI.mT, y_VCH)
            self.target_square += y_VCH.square().sum(dim=1)

    @property
    def factors(self) -> Tensor:
        """Ridge penalty of each input, in penalties of the window's own. Shape (I,), float64."""
        factors_I = self.gram.new_ones(self.gram.shape[-1])
        factors_I[self.widths[NO_EXTENSION] :] = CALENDAR_PENALTY[self.extension.calendar]
        if features := self.extension.random_features:
            factors_I[-features:] = features / AT_PENALTY
        return factors_I

    def only(self, extension: Extension) -> "GramAccumulator":
        """The same rows with a part of the extension, see :attr:`widths`; shares the sums."""
        part, width = copy(self), self.widths[extension]
        part.extension = extension
        part.widths = {known: self.widths[known] for known in extension.parts}
        part.gram = self.gram[..., :width, :width]
        part.cross = self.cross[..., :width, :]
        return part

    def copied(self) -> "GramAccumulator":
        """The same rows in sums of their own."""
        part = copy(self)
        part.gram, part.cross = self.gram.clone(), self.cross.clone()
        part.target_square, part.num_rows = self.target_square.clone(), self.num_rows.clone()
        return part

    def steps(self, begin: int, end: int) -> "GramAccumulator":
        """The same rows with the steps ``[begin, end)`` of their targets; shares the sums."""
        part = copy(self)
        part.num_steps = end - begin
        part.cross = self.cross[..., begin:end]
        part.target_square = self.target_square[..., begin:end]
        return part

    def pooled(self) -> "GramAccumulator":
        """The same rows, those of all variates together."""
        part = copy(self)
        part.num_variates = 1
        if self.num_variates > 1:
            part.gram, part.cross = self.gram.sum(dim=0), self.cross.sum(dim=0)
            part.target_square = self.target_square.sum(dim=0)
        return part

    def squared_error(self, weight: Tensor) -> Tensor:
        """Sum the squared error of ``loc + W (x - loc)`` over all rows and steps added.

        Args:
            weight: A candidate W for this accumulator's ``norm``. Shape (H, I), or (V, H, I).

        Returns:
            The sum, in squared units of the windows; divide by ``num_rows * H`` for the MSE.
            Shape (), float64; (V,) where each variate has sums of its own.
        """
        weight_HI = weight.to(self.gram)
        # In place: there may be hundreds of variates.
        fitted = (weight_HI @ self.gram).sub_(self.cross.mT, alpha=2).mul_(weight_HI)
        fitted = fitted.sum((-2, -1))
        # A perfect fit cancels to rounding noise of either sign.
        return (self.target_square.sum(-1) + fitted).clamp_min(0)

    def merge(self, other: "GramAccumulator") -> None:
        """Add the rows of another one, of the same norm, inputs and steps; in place."""
        assert (self.norm, self.num_steps) == (other.norm, other.num_steps)
        for mine, theirs in zip(self.tensors, other.tensors, strict=True):
            mine += theirs


@dataclass(frozen=True, kw_only=True, slots=True)
class AnchorFit:
    """The ridge that validation chose."""

    norm: Norm
    """What rows are centred on."""

    lam: float
    """Its penalty."""

    weight: Tensor
    """Its coefficients, 0 for what is not read. Shape (H, I), or (V, H, I); float64."""

    validation_mse: float
    """Its mean squared error over all validation rows and steps."""

    candidates: dict[tuple[Norm, float], float]
    """Validation MSE of every (norm, lambda) tried."""

    extension: Extension = NO_EXTENSION
    """What it reads beside the window and what is retrieved; the candidates then do too."""

    deviations: tuple[float | None, ...] = ()
    """Penalty of how far each variate's weights are from shared ones, None where they are shared
    ones, with random features or without; empty where all variates share them."""


def solve(gram: Tensor, cross: Tensor, lam: float, factors: Tensor | None = None) -> Tensor:
    """Solve the ridge ``min |Y - X W^T|^2 + lam |W|^2``, without an intercept.

    Args:
        gram: X^T X of the centred rows. Shape (I, I), float64.
        cross: X^T Y of the centred rows. Shape (I, H), float64.
        lam: Penalty, above 0; it also makes a singular Gram matrix solvable.
        factors: What each input has of that penalty; None: all of it. Shape (I,), float64.

    Returns:
        W. Shape (H, I), float64.

    Raises:
        ValueError: ``lam`` is not positive, or the sums are not finite.
    """
    if not lam > 0:
        raise ValueError(f"lam={lam}: pass a penalty above 0, windows may be collinear.")
    if not (gram.isfinite().all() and cross.isfinite().all()):
        raise ValueError("gram and cross hold NaN or inf: the windows must be finite numbers.")
    penalties_I = lam * (gram.new_ones(len(gram)) if factors is None else factors)
    penalised_II = gram + torch.diag(penalties_I)
    return torch.cholesky_solve(cross, torch.linalg.cholesky(penalised_II)).T.contiguous()


def fit_anchor(
    training: Sequence[GramAccumulator],
    validation: Sequence[GramAccumulator],
    lambdas: Sequence[float] = LAMBDAS,
) -> AnchorFit:
    """Solve every (norm, lambda) on training sums and keep the best on validation sums.

    Args:
        training: One accumulator per norm, already joined over the ranks.
        validation: The same norms in the same order, over the validation windows.
        lambdas: Penalties to try.

    Returns:
        The fit with the lowest validation MSE; the earlier candidate wins a tie. With an extension,
        it reads as much of that as is best, and has weights of 0 for the rest.

    Raises:
        ValueError: No rows were added to one of the accumulators.
    """
    return fit_spans([[sums] for sums in training], [[sums] for sums in validation], lambdas)


def fit_spans(
    training: Sequence[Sequence[GramAccumulator]],
    validation: Sequence[Sequence[GramAccumulator]],
    lambdas: Sequence[float] = LAMBDAS,
) -> AnchorFit:
    """As :func:`fit_anchor`, where the rows differ from one span of steps to the next.

    Args:
        training: For each norm, an accumulator for each span, the first steps first.
        validation: The same norms and spans in the same order.
        lambdas: Penalties to try; all spans share one, and the norm.

    Returns:
        As :func:`fit_anchor`, of the steps of all spans.

    Raises:
        ValueError: As :func:`fit_anchor`.
    """
    for learnt, scored in zip(chain(*training), chain(*validation), strict=True):
        assert learnt.norm == scored.norm  # sums of different centrings do not belong together
        if not (learnt.num_rows > 0 and scored.num_rows > 0):
            raise ValueError(
                f"model.anchor=ridge has {learnt.num_rows:.0f} training and "
                f"{scored.num_rows:.0f} validation rows: it needs both, or set model.anchor=none."
            )
    best: AnchorFit | None = None
    first = training[0][0]
    for part in first.extension.parts:
        train, valid = (
            [[sums.only(part) for sums in spans] for spans in split]
            for split in (training, validation)
        )
        fit = _fit(train, valid, lambdas)
        if best is None or fit.validation_mse < best.validation_mse:
            best = replace(fit, extension=part)
    assert best is not None
    unread = len(first.gram) - best.weight.shape[-1]
    return replace(best, weight=F.pad(best.weight, (0, unread)))


def fit_individual(
    training: Sequence[GramAccumulator],
    validation: Sequence[GramAccumulator],
    shared: AnchorFit,
    lambdas: Sequence[float] = DEVIATION_LAMBDAS,
    mark: Callable[[], None] = lambda: None,
) -> AnchorFit:
    """Let each variate's weights deviate from the shared ones, as far as validation likes best.

    A variate's weights are ``W + D``, where D is the ridge of what W leaves over of the variate:
    an infinite penalty on D gives W, none the variate's own least squares. Variates that go
    together lend each other strength, those that do not go their own way. With an extension,
    deviations that read none, a part or all of it are tried; with random features, they are also
    tried from the best shared weights with and from the best without them.

    Args:
        training: One accumulator per norm, with sums for each variate, joined over the ranks.
        validation: The same over the validation windows.
        shared: What :func:`fit_anchor` found on their pooled sums.
        lambdas: Penalties of D to try for each variate, beside an infinite one.
        mark: Called now and then, as a sign that it goes on.

    Returns:
        Weights (V, H, I) at the norm of ``shared``; the shared weights win a tie. It reads of the
        extension what any variate's weights do.
    """
    norms = [sums.norm for sums in training]
    train, valid = (sums[norms.index(shared.norm)] for sums in (training, validation))
    best_V = valid.squared_error(shared.weight)
    weight_VHI = shared.weight.expand(len(best_V), -1, -1)
    deviations: list[float | None] = [None] * len(best_V)
    bases = _bases(train.pooled(), valid.pooled(), shared)
    for lam, tried in _deviating(train, bases, lambdas, mark):
        error_V = valid.squared_error(tried)
        better_V = error_V < best_V
        weight_VHI = torch.where(better_V[:, None, None], tried, weight_VHI)
        best_V = torch.where(better_V, error_V, best_V)
        deviations = [
            lam if better else before
            for better, before in zip(better_V.tolist(), deviations, strict=True)
        ]
    unread = [not weight_VHI[..., width:].any() for width in train.widths.values()]
    return replace(
        shared,
        weight=weight_VHI,
        validation_mse=float(best_V.sum() / (valid.num_rows * weight_VHI.shape[1])),
        candidates={},
        extension=train.extension.parts[unread.index(True)],
        deviations=tuple(deviations),
    )


def _deviating(
    train: GramAccumulator,
    bases: Sequence[Tensor],
    lambdas: Sequence[float],
    mark: Callable[[], None],
) -> Iterator[tuple[float | None, Tensor]]:
    """Weights to try for each variate: penalty of the deviation, and (H, I) or (V, H, I)."""
    for base_HI in bases[1:]:  # the first one is what they are held against
        yield None, base_HI
    left_VIH = train.cross.repeat(1, 1, len(bases))
    left_VIH -= train.gram @ torch.cat(list(bases)).T
    own_VHI, factors_I = left_VIH.new_zeros(left_VIH.mT.shape), train.factors
    for width, lam in product(train.widths.values(), lambdas):  # the least first: the rest stays 0
        for own_HI, gram_II, left_IH in zip(own_VHI, train.gram, left_VIH, strict=True):
            part_II, part_IH = gram_II[:width, :width], left_IH[:width]
            own_HI[:, :width] = solve(part_II, part_IH, lam, factors_I[:width])
            mark()
        for base_HI, deviation_VHI in zip(bases, own_VHI.chunk(len(bases), dim=1), strict=True):
            yield lam, base_HI + deviation_VHI


def _bases(train: GramAccumulator, valid: GramAccumulator, shared: AnchorFit) -> list[Tensor]:
    """Shared weights to deviate from: the best, with random features and without. Each (H, I)."""
    features = train.extension.random_features
    if not features:
        return [shared.weight]
    if not shared.extension.random_features:
        return [shared.weight, _fit([[train]], [[valid]], LAMBDAS).weight]
    plain = Extension(calendar=train.extension.calendar)
    without = fit_anchor([train.only(plain)], [valid.only(plain)]).weight
    return [shared.weight, F.pad(without, (0, features))]


def _fit(
    training: Sequence[Sequence[GramAccumulator]],
    validation: Sequence[Sequence[GramAccumulator]],
    lambdas: Sequence[float],
) -> AnchorFit:
    """Of sums by norm and span of steps, see :func:`fit_spans`; all they read, and no less."""
    best: AnchorFit | None = None
    candidates: dict[tuple[Norm, float], float] = {}
    for train, valid in zip(training, validation, strict=True):
        values = sum(sums.num_rows * sums.num_steps for sums in valid)
        for lam in lambdas:
            weights = [solve(sums.gram, sums.cross, lam, sums.factors) for sums in train]
            pairs = zip(valid, weights, strict=True)
            mse = float(sum(sums.squared_error(weight) for sums, weight in pairs) / values)
            norm = train[0].norm
            candidates[norm, lam] = mse
            if best is None or mse < best.validation_mse:
                best = AnchorFit(
                    norm=norm,
                    lam=lam,
                    weight=torch.cat(weights),
                    validation_mse=mse,
                    candidates=candidates,
                )
    assert best is not None  # both sequences hold at least one norm
    return best


def anchor_of(
    *fits: AnchorFit,
    seq_len: int,
    reads_future: bool = False,
    extension: Extension = NO_EXTENSION,
) -> LinearAnchor:
    """Make the anchor of a solved ridge, or of one for each source.

    Args:
        fits: Of the same shape.
        seq_len: As :class:`LinearAnchor` takes it.
        reads_future: As :class:`LinearAnchor` takes it.
        extension: As :class:`LinearAnchor` takes it.
    """
    weight = fits[0].weight
    anchor = LinearAnchor(
        seq_len, weight.shape[-2], reads_future=reads_future, extension=extension,
        num_sources=len(fits), num_variates=len(weight) if weight.ndim == 3 else 1,
    )  # fmt: skip
    for source, fit in enumerate(fits):
        anchor.set_solution(fit.weight, fit.norm, source, fit.extension)
    return anchor
