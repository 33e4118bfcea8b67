"""The linear anchor: a linear map from the window, and what extends it, to the horizon.

Rows are centred on their own mean or last value and never divided by their scale, so that the
ridge that :mod:`model.anchor_fit` solves for it minimises the very squared error that a forecast
is scored with.

Shape legend (this file):
    R  rows, one per (window, variate)     L  seq_len, in time steps
    S  sources                             H  pred_len, in time steps
    V  variates with weights of their own  B  windows
    I  inputs: L; H more with a retrieved future; more with an extension, see
       :mod:`model.calendar_inputs` and :mod:`model.random_features`
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from model.calendar_inputs import calendar_inputs
from model.config import (
    NO_EXTENSION,
    Calendar,
    Extension,
    num_anchor_inputs,
    num_calendar_inputs,
)
from model.float32_buffers import KeepsBufferPrecision
from model.random_features import random_features, random_projection

Norm = Literal["mean", "last"]


class AnchorParts(NamedTuple):
    """Weights by what they are multiplied with; each (..., H, its inputs), 0 inputs where none."""

    window: Tensor
    retrieved: Tensor
    calendar: Tensor
    random_features: Tensor


class LinearAnchor(KeepsBufferPrecision):
    """Forecast ``loc + W (x - loc)``; not trained, float32 whatever the model is cast to.

    With ``reads_future``, x is the window followed by the forecast that retrieval makes. With an
    ``extension``, it also holds what :func:`model.calendar_inputs.calendar_inputs` and
    :func:`model.random_features.random_features` make.
    With ``num_variates`` above 1, each variate has a W of its own.
    Which ``loc`` belongs to W is a buffer too, so the pair survives a state dict. Before
    :meth:`set_solution` W is zero and the forecast repeats ``loc``. With several sources each has
    a pair of its own.
    """

    weight: Tensor
    subtracts_last: Tensor
    projection: Tensor

    def __init__(
        self,
        seq_len: int,
        pred_len: int,
        norm: Norm = "last",
        *,
        reads_future: bool = False,
        extension: Extension = NO_EXTENSION,
        num_sources: int = 1,
        num_variates: int = 1,
    ) -> None:
        super().__init__()
        assert 1 in (num_sources, num_variates)  # sources need not have the same variates
        self.seq_len = seq_len
        self.num_sources, self.num_variates = num_sources, num_variates
        self.extension = extension
        num_inputs = num_anchor_inputs(
            seq_len, pred_len, reads_future=reads_future, extension=extension
        )
        each = () if num_sources == 1 else (num_sources,)
        own = each if num_variates == 1 else (num_variates,)
        self.register_buffer("weight", torch.zeros(*own, pred_len, num_inputs))
        self.register_buffer("subtracts_last", torch.full(each, norm == "last"))
        if extension.random_features:
            drawn = random_projection(seq_len, extension.random_features)
            self.register_buffer("projection", drawn.clone())

    def set_solution(
        self, weight: Tensor, norm: Norm, source: int = 0, extension: Extension | None = None
    ) -> None:
        """Take a solved ridge; mutates the buffers in place.

        Args:
            weight: Coefficients of the centred inputs, floating point. Shape (H, I), for all
                variates; or (V, H, I).
            norm: What the rows were centred on when it was solved.
            source: Number of the source whose it is.
            extension: What it reads beside the window and what is retrieved; it may have been
                solved with fewer inputs than this anchor has then, and the others count 0. None:
                it has them all.

        Raises:
            ValueError: Another shape than this anchor's.
        """
        if extension is not None:
            weight = self._placed(weight, extension)
        own, flag = self.weight, self.subtracts_last
        if self.num_sources > 1:
            own, flag = own[source], flag[source]
        if weight.shape not in (own.shape, own.shape[-2:]):
            raise ValueError(
                f"weight has shape {tuple(weight.shape)}: this anchor was built for "
                f"(pred_len, inputs) = {tuple(own.shape[-2:])}"
                + (f", {self.num_variates} times." if self.num_variates > 1 else ".")
            )
        own.copy_(weight)
        flag.fill_(norm == "last")

    def _placed(self, weight: Tensor, extension: Extension) -> Tensor:
        """Put 0 where a solution has no inputs; one that fits nowhere stays as it is."""
        unread = self.weight.shape[-1] - weight.shape[-1]
        with_retrieved = self.weight.shape[-1] - self.extension.num_inputs(self.seq_len)
        end = weight.shape[-1]
        if end in (self.seq_len, with_retrieved):
            return F.pad(weight, (0, unread))
        if unread == num_calendar_inputs(self.extension.calendar, self.seq_len):
            end -= extension.random_features  # the calendar's inputs stand before them
            return torch.cat([F.pad(weight[..., :end], (0, unread)), weight[..., end:]], dim=-1)
        return weight

    def forward(
        self,
        rows: Tensor,
        retrieved: Tensor | None = None,
        calendar_phase: Tensor | None = None,
        sources: Tensor | None = None,
    ) -> Tensor:
        """Forecast each row, in the row's own units.

        Args:
            rows: Windows, oldest first, on any affine scale; with ``num_variates``, those of each
                window one after another. Shape (R, L).
            retrieved: What retrieval forecasts, on the same scale, exactly where this anchor
                was built with ``reads_future``. Shape (R, H).
            calendar_phase: Of each window, see :class:`model.batch.ForecastInputs`, its variates
                one after another in ``rows``; read with a ``calendar`` alone. Shape (B, 4).
            sources: Number of each window's source, its variates one after another in ``rows``.
                Shape (B,), int64; may be None where there is one.

        Returns:
            Forecast on the same scale. Shape (R, H), float32.

        Raises:
            ValueError: ``rows`` or ``retrieved`` does not have this anchor's shape, there are not
                as many rows to a window as weights, or sources are missing.
        """
        check_columns("rows", rows, self.seq_len)
        with torch.autocast(rows.device.type, enabled=False):
            rows_RL = rows.float()
            subtracts_last = self.subtracts_last
            if self.num_sources > 1:
                if sources is None:
                    raise ValueError(
                        f"sources is missing, and this anchor was built for {self.num_sources} of "
                        "them: pass the number of each window's source."
                    )
                sources_R1 = of_rows(sources[:, None], len(rows))
                subtracts_last = subtracts_last[sources_R1]
            loc_R1 = _loc(rows_RL, subtracts_last)
            phase_R4 = None
            if self.extension.calendar != "none" and calendar_phase is not None:
                phase_R4 = of_rows(calendar_phase.float(), len(rows))
            projection = self.projection if self.extension.random_features else None
            calendar, reads_waves = self.extension.calendar, None
            if projection is not None and phase_R4 is not None:
                reads_waves = self._reads_calendar()
                if self.num_sources > 1:
                    reads_waves = reads_waves[sources_R1]
            inputs_RI = anchor_inputs(
                rows_RL, loc_R1, retrieved, calendar, phase_R4, projection, reads_waves
            )
            check_columns("rows with what is retrieved", inputs_RI, self.weight.shape[-1])
            if self.num_variates > 1:
                return loc_R1 + _of_variates(inputs_RI, self.weight)
            if self.num_sources == 1:
                return loc_R1 + F.linear(inputs_RI, self.weight)
            change_RH = torch.zeros_like(rows_RL[:, :1])
            # Every source's weights for every row: sorting rows by source would stall a GPU too.
            for source, weight_HI in enumerate(self.weight):
                change_RH = torch.where(
                    sources_R1 == source, F.linear(inputs_RI, weight_HI), change_RH
                )
            return loc_R1 + change_RH

    @property
    def parts(self) -> AnchorParts:
        """Views of the weights; those of what validation did not take are 0."""
        calendar = num_calendar_inputs(self.extension.calendar, self.seq_len)
        features = self.extension.random_features
        retrieved = self.weight.shape[-1] - self.seq_len - calendar - features
        sizes = [self.seq_len, retrieved, calendar, features]
        return AnchorParts(*torch.split(self.weight, sizes, dim=-1))

    def _reads_calendar(self) -> Tensor:
        """Whether any weight does; features of a source that was solved without it have no waves.

        Returns:
            Shape (), or (S,) with several sources; bool.
        """
        read = self.parts.calendar != 0
        return read.flatten(1).any(dim=1) if self.num_sources > 1 else read.any()

    def centre(self, rows: Tensor) -> Tensor:
        """What rows are centred on, where there is one source. (R, L) -> (R, 1), float32."""
        return _loc(rows.float(), self.subtracts_last)


def _loc(rows: Tensor, subtracts_last: Tensor) -> Tensor:
    """Last value or mean of each row. (R, L) -> (R, 1)."""
    # torch.where instead of an if: reading the flag would stall a GPU at every step.
    return torch.where(subtracts_last, rows[:, -1:], rows.mean(dim=1, keepdim=True))


def anchor_inputs(
    rows: Tensor,
    loc: Tensor,
    retrieved: Tensor | None,
    calendar: Calendar,
    phase: Tensor | None,
    projection: Tensor | None,
    reads_waves: Tensor | None = None,
) -> Tensor:
    """What the weights are multiplied with: (R, L), (R, 1), (R, H), (R, 4) -> (R, I)."""
    centred_RL = rows - loc
    parts = [centred_RL]
    if retrieved is not None:
        parts.append(retrieved - loc)
    if phase is not None:
        parts.append(calendar_inputs(calendar, centred_RL, phase))
    if projection is not None:
        parts.append(random_features(centred_RL, projection, phase, reads_waves))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def by_variate(rows: Tensor, num_variates: int) -> Tensor:
    """Rows of each variate together: (B * V, I) -> (V, B, I)."""
    return rows.reshape(-1, num_variates, rows.shape[1]).transpose(0, 1)


def _of_variates(rows: Tensor, weight: Tensor) -> Tensor:
    """Multiply each row with its variate's weights: (B * V, I), (V, H, I) -> (B * V, H)."""
    check_variates(len(rows), len(weight))
    change_VBH = by_variate(rows, len(weight)) @ weight.mT
    return change_VBH.transpose(0, 1).flatten(0, 1)


def check_variates(num_rows: int, num_variates: int) -> None:
    """Refuse rows that are not those of whole windows."""
    if num_rows % num_variates:
        raise ValueError(
            f"{num_rows} rows are not those of windows of {num_variates} variates, which have "
            "weights of their own: pass all variates of each window."
        )


def of_rows(known: Tensor, num_rows: int) -> Tensor:
    """Give each row what is known of its window. (B, n) -> (R, n)."""
    return known.repeat_interleave(num_rows // max(1, len(known)), dim=0)


def check_columns(name: str, rows: Tensor, columns: int) -> None:
    """Refuse rows of another length."""
    if rows.ndim != 2 or rows.shape[1] != columns:
        raise ValueError(
            f"{name} has shape {tuple(rows.shape)}: pass rows of {columns} time steps each."
        )
