"""Runs over several small sets of series, of other frequencies, variates and lengths."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from dist_train.config import RunConfig
from dist_train.data.config import DataConfig, SourceConfig
from model.config import GramConfig
from tests.helpers.runs import tiny_run
from tests.helpers.series import random_motifs, write_stamped

SOURCES = {"hourly": ("h", 500, 2, 24), "quarter": ("15min", 700, 3, 24), "daily": ("D", 400, 1, 7)}
"""By name: frequency, rows, variates, and steps of a cycle."""


def write_sources(folder: Path) -> dict[str, Path]:
    """Write a wide CSV for each of :data:`SOURCES`; returns them by name."""
    files = {}
    for seed, (name, (frequency, rows, variates, cycle)) in enumerate(SOURCES.items()):
        rng = np.random.default_rng(seed)
        phase = (np.arange(rows)[:, None] + 3 * np.arange(variates)) * 2 * np.pi / cycle
        values = np.sin(phase) * (1 + np.arange(variates)) + 0.2 * rng.normal(size=phase.shape)
        files[name] = write_stamped(folder / f"{name}.csv", values, frequency)
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


def with_a_shorter_horizon(config: RunConfig, steps: int = 5) -> RunConfig:
    """The same run, whose second source is forecast for fewer steps."""
    assert config.data.sources is not None
    first, second, *others = config.data.sources
    sources = [first, replace(second, pred_len=steps), *others]
    return replace(config, data=replace(config.data, sources=sources))


def tiny_corpus_run(folder: Path, **changes: object) -> RunConfig:
    """Configure a tiny run over two sources: hours that repeat, and noise in quarters of hours.

    Retrieval helps where shapes repeat, and not where noise remembers its last value.
    """
    hours, quarters = folder / "hours.csv", folder / "quarters.csv"
    if not hours.exists():
        write_stamped(hours, random_motifs(rows=800, length=32), "h")
        rng = np.random.default_rng(0)
        values = rng.normal(size=(800, 2))
        for row in range(1, len(values)):
            values[row] += 0.9 * values[row - 1]
        write_stamped(quarters, values, "15min")
    sources = [SourceConfig(path=str(path)) for path in (hours, quarters)]
    data = DataConfig(sources=sources, seq_len=24, pred_len=8, num_workers=0)
    gram = GramConfig(use_gram=True, d_repr=24, temperature=0.05)
    return tiny_run(folder, **{"data": data, "gram": gram} | changes)
