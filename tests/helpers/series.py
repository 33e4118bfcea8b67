"""Small series on disk, with a daily cycle that can be learnt."""

from pathlib import Path

import numpy as np
import pandas as pd


def write_series(path: Path, rows: int = 600, variates: int = 2, seed: int = 0) -> Path:
    """Write an hourly wide CSV and return its path."""
    rng = np.random.default_rng(seed)
    hours = np.arange(rows)[:, None]
    phase = np.arange(variates)[None]
    values = (
        10 + 3 * np.sin(2 * np.pi * hours / 24 + phase) + 0.5 * rng.normal(size=(rows, variates))
    )
    frame = pd.DataFrame(values, columns=[f"v{number}" for number in range(variates)])
    frame.insert(0, "date", pd.date_range("2020-01-01", periods=rows, freq="h"))
    frame.to_csv(path, index=False)
    return path


def write_stamped(path: Path, values: np.ndarray, freq: str) -> Path:
    """Write values (T, N) as a wide CSV of that frequency and return its path."""
    frame = pd.DataFrame(values, columns=[f"v{number}" for number in range(values.shape[1])])
    frame.insert(0, "date", pd.date_range("2020-01-01", periods=len(values), freq=freq))
    frame.to_csv(path, index=False)
    return path


def write_long_series(path: Path, ids: tuple[str, ...] = ("a", "b", "c"), rows: int = 400) -> Path:
    """Write hourly series of one variate as a long CSV and return its path."""
    rng = np.random.default_rng(1)
    hours = np.arange(rows)
    frames = [
        pd.DataFrame(
            {
                "unique_id": id_,
                "ds": pd.date_range("2020-01-01", periods=rows, freq="h"),
                "y": 10 * (n + 1) + 3 * np.sin(2 * np.pi * hours / 24 + n) + rng.normal(size=rows),
            }
        )
        for n, id_ in enumerate(ids)
    ]
    pd.concat(frames).to_csv(path, index=False)
    return path


def random_motifs(rows: int = 800, length: int = 32, variates: int = 2) -> np.ndarray:
    """Repeat a few random shapes in random order: who has seen one knows how it ends.

    A linear map knows little: which shape it is decides what follows, and shapes are random.
    """
    rng = np.random.default_rng(7)
    shapes = rng.normal(size=(6, length))
    order = rng.integers(len(shapes), size=(variates, rows // length + 1))
    values = np.stack([np.concatenate(shapes[row])[:rows] for row in order], axis=1)
    return values + 0.05 * rng.normal(size=values.shape)
