"""Split, standardised and numbered windows of values made in a test, without a file."""

import numpy as np
import pandas as pd

from dist_train.data.config import DataConfig
from dist_train.data.dates import infer_frequency
from dist_train.data.series import Series, SeriesSet, from_table
from dist_train.data.sources import Source
from dist_train.data.windows import ForecastData, build_forecast_data, build_from_sources


def wide_data(values: np.ndarray, seq_len: int, pred_len: int) -> ForecastData:
    """One hourly series of the variates v0, v1... Splits are 70/10/20 %. (T, N)."""
    table = pd.DataFrame(values, columns=[f"v{n}" for n in range(values.shape[1])])
    table.insert(0, "date", pd.date_range("2020", periods=len(values), freq="h"))
    return _build(table, seq_len, pred_len)


def long_data(parts: list[tuple[int, np.ndarray]], seq_len: int, pred_len: int) -> ForecastData:
    """Hourly univariate series s0, s1..., each given by its first hour and its values (T,)."""
    frames = [
        pd.DataFrame(
            {
                "unique_id": f"s{number}",
                "ds": pd.date_range("2020", periods=first + len(values), freq="h")[first:],
                "y": values,
            }
        )
        for number, (first, values) in enumerate(parts)
    ]
    return _build(pd.concat(frames), seq_len, pred_len)


def source_of(
    name: str, parts: list[tuple[np.ndarray, np.ndarray]], *, memory_percent: int = 100,
    percent: int = 100, pred_len: int | None = None,
) -> Source:  # fmt: skip
    """A source of univariate series, each given by its time stamps and values. (T,) each."""
    series = tuple(
        Series(id=f"{name}/{n}", dates=dates, values=values[:, None], columns=("y",))
        for n, (dates, values) in enumerate(parts)
    )
    series_set = SeriesSet(
        name=name, series=series, frequency=infer_frequency(parts[0][0]), seasonal_period=24,
        description=name, borders=(0.7, 0.1, 0.2),
        checksum=f"{name} {float(sum(np.abs(values).sum() for _, values in parts))}",
    )  # fmt: skip
    return Source(
        series_set=series_set, percent=percent, memory_percent=memory_percent, pred_len=pred_len
    )


def data_of_sources(sources: list[Source], seq_len: int, pred_len: int) -> ForecastData:
    """Split, standardise and number the windows of several sources."""
    return build_from_sources(DataConfig(seq_len=seq_len, pred_len=pred_len), tuple(sources))


def _build(table: pd.DataFrame, seq_len: int, pred_len: int) -> ForecastData:
    config = DataConfig(seq_len=seq_len, pred_len=pred_len)
    return build_forecast_data(config, from_table(table, config, name="own"))
