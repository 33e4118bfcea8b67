"""Sources as users have them: wide and long, CSV and Parquet, folders and patterns."""

from pathlib import Path

import numpy as np
import pandas as pd

from dist_train.data.arrow_series import Built, settings_of, write_series
from dist_train.data.config import DataConfig, SourceConfig
from dist_train.data.source_files import name_of, parts_of


def write_wide(
    path: Path, rows: int = 80, freq: str = "h", variates: int = 2, seed: int = 0
) -> Path:
    """Write a table of a date and variates, CSV or Parquet by its ending."""
    rng = np.random.default_rng(seed)
    table = pd.DataFrame(rng.normal(size=(rows, variates)), columns=list("abcdefgh")[:variates])
    table.insert(0, "date", pd.date_range("2020-01-01", periods=rows, freq=freq))
    return _write(table, path)


def write_long(path: Path, rows: dict[str, int], freq: str = "D", seed: int = 0) -> Path:
    """Write a table of unique_id, ds and y, with so many rows of each series."""
    rng = np.random.default_rng(seed)
    parts = [
        pd.DataFrame(
            {
                "unique_id": id_,
                "ds": pd.date_range("2020-01-01", periods=count, freq=freq),
                "y": 5 + rng.normal(size=count),
            }
        )
        for id_, count in rows.items()
    ]
    return _write(pd.concat(parts), path)


def mixed_sources(folder: Path) -> list[SourceConfig]:
    """A wide file, a long one, a folder and a pattern, of four frequencies."""
    for name in ("many", "deep/one", "deep/two"):
        (folder / name).mkdir(parents=True)
    write_wide(folder / "wide.csv", variates=3)
    write_long(folder / "long.parquet", {"x": 90, "y/z": 60, "w w": 70}, seed=1)
    for n, rows in enumerate((60, 75, 100)):
        write_wide(folder / "many" / f"s{n}.csv", rows, freq="15min", variates=1 + n, seed=n)
    write_long(folder / "deep" / "one" / "part.parquet", {"a": 60, "b": 61}, freq="MS", seed=5)
    write_wide(folder / "deep" / "two" / "part.parquet", 66, freq="MS", variates=2, seed=6)
    return [
        SourceConfig(path=str(folder / "wide.csv"), weight=2.0),
        SourceConfig(path=str(folder / "long.parquet"), name="shops", percent=50),
        SourceConfig(path=str(folder / "many"), splits=[0.6, 0.2, 0.2]),
        SourceConfig(path=str(folder / "deep" / "*" / "*.parquet"), description="months"),
    ]


def build_one(source: SourceConfig, folder: Path) -> Built:
    """Build a source into a folder."""
    parts = parts_of(DataConfig(), source)
    return write_series(folder, name_of(source), parts, settings_of(source))


def windows_of(sources: list[SourceConfig], **keys: object) -> DataConfig:
    """Windows that the series of :func:`mixed_sources` are long enough for."""
    return DataConfig(sources=sources, seq_len=8, pred_len=4, **keys)  # type: ignore[arg-type]


def _write(table: pd.DataFrame, path: Path) -> Path:
    if path.suffix == ".csv":
        table.to_csv(path, index=False)
    else:
        table.to_parquet(path, index=False)
    return path
