"""What a checkpoint has to know of the series, so that forecasts need no training data."""

import difflib
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dist_train.data.config import DataError, quote
from dist_train.data.splits import Scaler
from dist_train.data.windows import ForecastData


def describe(data: ForecastData) -> dict[str, Any]:
    """Write down scalers, variates, frequencies and descriptions as plain JSON values."""
    series_set = data.series_set
    sources = [
        {
            "name": source.name,
            "first": int(first),
            "frequency": source.series_set.frequency,
            "seasonal_period": source.series_set.seasonal_period,
            "description": source.series_set.description,
        }
        for source, first in zip(data.sources, data.first_series, strict=False)
    ]
    return {
        "name": series_set.name,
        "checksum": series_set.checksum,
        "frequency": series_set.frequency,
        "seasonal_period": series_set.seasonal_period,
        "description": series_set.description,
        "series": [
            {
                "id": series.id,
                "columns": list(series.columns),
                "mean": scaler.mean.tolist(),
                "scale": scaler.scale.tolist(),
            }
            for series, scaler in zip(series_set.series, data.scalers, strict=True)
        ],
        **({"sources": sources} if len(sources) > 1 else {}),
    }


def descriptions(facts: Mapping[str, Any]) -> list[str]:
    """What the series of each source are, in words.

    Args:
        facts: What :func:`describe` wrote.
    """
    return [one["description"] for one in facts.get("sources", [facts])]


def frequencies_by_id(facts: Mapping[str, Any]) -> dict[str, str | None]:
    """The frequency of each series, as a pandas alias; None: irregular.

    Args:
        facts: What :func:`describe` wrote.
    """
    sources, numbers = _sources_of(facts)
    return {
        entry["id"]: sources[number]["frequency"]
        for entry, number in zip(facts["series"], numbers, strict=True)
    }


def _sources_of(facts: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[int]]:
    """Sources, and the number of each series' own."""
    sources = facts.get("sources", [{"first": 0, "frequency": facts.get("frequency")}])
    firsts = [one["first"] for one in sources]
    return sources, [bisect_right(firsts, n) - 1 for n in range(len(facts["series"]))]


@dataclass(frozen=True, kw_only=True)
class Known:
    """What a checkpoint knows of one series."""

    number: int
    """Its place among the series of the run."""

    scaler: Scaler
    columns: tuple[str, ...]
    frequency: str | None
    """Of its source."""

    source: int
    """Number of its source."""


class KnownSeries:
    """What a checkpoint knows of its series, looked up by their ids."""

    def __init__(self, facts: dict[str, Any]) -> None:
        """Take what :func:`describe` wrote."""
        sources, source_of = _sources_of(facts)
        self._entries = {
            entry["id"]: Known(
                number=number,
                source=source_of[number],
                frequency=sources[source_of[number]]["frequency"],
                scaler=Scaler(mean=np.asarray(entry["mean"]), scale=np.asarray(entry["scale"])),
                columns=tuple(entry["columns"]),
            )
            for number, entry in enumerate(facts["series"])
        }
        self._name = facts["name"]

    def find(self, series_id: str) -> Known:
        """Look up a series.

        Args:
            series_id: Its id; of no matter where the run knows one wide file only.

        Raises:
            DataError: The run was not trained on it.
        """
        entry = self._entries.get(series_id)
        if entry is None and len(self._entries) == 1 and self._name in self._entries:
            entry = self._entries[self._name]
        if entry is None:
            near = difflib.get_close_matches(series_id, self._entries, n=1)
            example = (near or list(self._entries))[0]
            raise DataError(
                f"series {quote(series_id)}: the run was not trained on it; it knows "
                f"{len(self._entries)} series, such as {example!r}. Leave it out, or train on it."
            )
        return entry
