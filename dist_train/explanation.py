"""Say in names and dates what forecasts rest on: histories found, trend classes, trust.

Shape legend (this file):
    N  variates     K  neighbours     L  seq_len     H  pred_len
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from dist_train.data.dates import Dates
from dist_train.prediction import Floats, SeriesForecast

if TYPE_CHECKING:
    from dist_train.loading import LoadedRun

DIRECTIONS = ("down", "flat", "up")
MAGNITUDES = ("strong down", "weak down", "weak up", "strong up")


@dataclass(frozen=True, kw_only=True)
class History:
    """A window of the past that the memory found."""

    series: str
    variate: str
    start: np.datetime64
    """First step of the window."""

    end: np.datetime64
    """Its last step; what followed is what the model is shown."""

    future_end: np.datetime64
    """Last step of what followed."""

    weight: float
    """Share among the histories of its row, as the model weighs them."""

    distance: float
    """Squared Euclidean distance of the keys."""


@dataclass(frozen=True, kw_only=True)
class RowExplanation:
    """What the forecast of one variate of one series rests on."""

    series: str
    variate: str
    directions: Mapping[str, float] | None
    """Probability by name; None without the trend-aware patch router."""

    magnitudes: Mapping[str, float] | None
    """Probability by name; None without the router."""

    gate: float | None
    """Trust in the present against history; None without a memory."""

    match: float | None
    """How well the histories match, 0 to 1; None without a memory."""

    histories: tuple[History, ...]
    """The nearest first, as they were searched; empty without a memory, or where nothing is long
    enough past."""


def explain(run: "LoadedRun", forecasts: Sequence[SeriesForecast]) -> list[RowExplanation]:
    """Explain forecasts that were made with evidence, one row for each variate.

    Args:
        run: Made them.
        forecasts: From :func:`dist_train.prediction.predict`, ``with_evidence``.
    """
    return [row for forecast in forecasts for row in _rows(run, forecast)]


def history_columns(rows: Sequence[RowExplanation]) -> dict[str, npt.NDArray[Any]]:
    """Lay the histories of explained forecasts out as the columns of a table, a row for each."""
    found = [(row, rank, history) for row in rows for rank, history in enumerate(row.histories, 1)]
    return {
        "unique_id": np.array([row.series for row, _, _ in found], dtype=str),
        "variate": np.array([row.variate for row, _, _ in found], dtype=str),
        "rank": np.array([rank for _, rank, _ in found], dtype=np.int64),
        "history_id": np.array([history.series for *_, history in found], dtype=str),
        "history_variate": np.array([history.variate for *_, history in found], dtype=str),
        **{
            name: np.array([getattr(one, name) for *_, one in found], dtype="datetime64[ns]")
            for name in ("start", "end", "future_end")
        },
        **{
            name: np.array([getattr(one, name) for *_, one in found], dtype=np.float64)
            for name in ("weight", "distance")
        },
    }


def _rows(run: "LoadedRun", forecast: SeriesForecast) -> Iterator[RowExplanation]:
    evidence = forecast.evidence
    assert evidence is not None, "predict(..., with_evidence=True)"
    output = evidence.output
    for number, variate in enumerate(forecast.series.columns):
        directions = magnitudes = None
        if output.trend is not None:
            directions = _named(DIRECTIONS, output.trend.direction[number])
            magnitudes = _named(MAGNITUDES, output.trend.magnitude[number])
        yield RowExplanation(
            series=forecast.series.id,
            variate=variate,
            directions=directions,
            magnitudes=magnitudes,
            gate=None if output.gate is None else float(output.gate[number]),
            match=None if output.match is None else float(output.match[number]),
            histories=tuple(_histories(run, forecast, number)),
        )


def _named(names: Sequence[str], logits: torch.Tensor) -> dict[str, float]:
    shares = torch.softmax(logits.double(), dim=-1).tolist()
    return dict(zip(names, shares, strict=True))


def _histories(run: "LoadedRun", forecast: SeriesForecast, number: int) -> Iterator[History]:
    assert forecast.evidence is not None
    neighbours, weights = forecast.evidence.neighbours, forecast.evidence.output.neighbour_weights
    if run.retriever is None or neighbours is None or weights is None:
        return
    bank, known = run.retriever.bank, run.retriever.data.series_set.series
    ids_K = neighbours.ids[number]
    places = torch.stack(bank.places(ids_K), dim=1).tolist()
    for rank, (series, start, variate) in enumerate(places):
        if series < 0:
            continue
        dates: Dates = known[series].dates
        yield History(
            series=known[series].id,
            variate=known[series].columns[variate],
            start=dates[start],
            end=dates[start + bank.seq_len - 1],
            future_end=dates[start + bank.seq_len + bank.pred_len - 1],
            weight=float(weights[number, rank]),
            distance=float(neighbours.distances[number, rank]),
        )


def analogues(run: "LoadedRun", forecast: SeriesForecast) -> Floats:
    """What followed the histories of a forecast, put onto its own level and scale.

    Returns:
        Original units, NaN where there is none. Shape (N, K, H).
    """
    assert forecast.evidence is not None
    neighbours, retriever = forecast.evidence.neighbours, run.retriever
    if retriever is None or neighbours is None:
        return np.empty((forecast.values.shape[1], 0, 0))
    anchored = run.config.gram.retrieval_key == "anchored"
    futures_NKH = retriever.bank.futures(neighbours.ids, anchored=anchored).double().numpy()
    own_NL = forecast.series.values[forecast.end - retriever.bank.seq_len : forecast.end].T
    level_N1 = own_NL[:, -1:] if anchored else own_NL.mean(axis=1, keepdims=True)
    spread_N1 = own_NL.std(axis=1, keepdims=True)
    drawn: Floats = level_N1[:, None] + spread_N1[:, None] * futures_NKH
    drawn[neighbours.ids.numpy() < 0] = np.nan
    return drawn
