"""Several small sets of series on disk: other frequencies, variates and lengths, one cycle each."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from dist_train.config import RunConfig
from dist_train.data.config import SourceConfig
from model.config import GramConfig
from tests.helpers.runs import tiny_run

SOURCES = {"hourly": ("h", 500, 2, 24), "quarter": ("15min", 700, 3, 24), "daily": ("D", 400, 1, 7)}
"""By name: frequency, rows, variates, and steps of a cycle."""


def write_sources(folder: Path) -> dict[str, Path]:
    """Write a wide CSV for each of :data:`SOURCES`; returns them by name."""
    files = {}
    for seed, (name, (frequency, rows, variates, cycle)) in enumerate(SOURCES.items()):
        rng = np.random.default_rng(seed)
        phase = (np.arange(rows)[:, None] + 3 * np.arange(variates)) * 2 * np.pi / cycle
        values = np.sin(phase) * (1 + np.arange(variates)) + 0.2 * rng.normal(size=phase.shape)
        frame = pd.DataFrame(values, columns=[f"v{number}" for number in range(variates)])
        frame.insert(0, "date", pd.date_range("2020-01-01", periods=rows, freq=frequency))
        files[name] = folder / f"{name}.csv"
        frame.to_csv(files[name], index=False)
    return files


def run_over_sources(folder: Path, name: str = "run", held_out: str = "daily") -> RunConfig:
    """Configure a tiny run over :data:`SOURCES`, of which one is scored only."""
    files = write_sources(folder)
    sources = [
        SourceConfig(
            path=str(file), description=f"The {source} series", percent=100 * (source != held_out)
        )
        for source, file in files.items()
    ]
    base = tiny_run(folder, name=name, gram=GramConfig(use_gram=False))
    data = replace(base.data, path=None, sources=sources, temperature=2.0)
    model = replace(base.model, prompt="full", anchor="ridge")
    return replace(base, data=data, model=model)
