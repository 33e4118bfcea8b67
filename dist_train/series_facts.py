"""What a checkpoint has to know of the series, so that forecasts need no training data."""

from typing import Any

import numpy as np

from dist_train.data.config import DataError
from dist_train.data.splits import Scaler
from dist_train.data.windows import ForecastData


def describe(data: ForecastData) -> dict[str, Any]:
    """Write down scalers, variates, frequency and description as plain JSON values."""
    series_set = data.series_set
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
    }


def known_series(facts: dict[str, Any], series_id: str) -> tuple[Scaler, list[str]]:
    """Find the scaler and the variates of a series.

    Args:
        facts: What :func:`describe` wrote.
        series_id: Its id; of no matter where the run knows one series only.

    Raises:
        DataError: The run was not trained on it.
    """
    entries = {entry["id"]: entry for entry in facts["series"]}
    if len(entries) == 1:
        entry = next(iter(entries.values()))
    elif series_id in entries:
        entry = entries[series_id]
    else:
        raise DataError(
            f"series {series_id!r}: the run was not trained on it; it knows {len(entries)} "
            f"series, such as {next(iter(entries))!r}."
        )
    scaler = Scaler(mean=np.asarray(entry["mean"]), scale=np.asarray(entry["scale"]))
    return scaler, list(entry["columns"])
