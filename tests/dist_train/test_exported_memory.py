"""dist_train/exported_memory.py: the memory finds from its own folder what it found before."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dist_train.data.windows import load_forecast_data
from dist_train.exported_memory import read_memory, write_memory
from dist_train.loading import LoadedRun, load_run
from dist_train.retrieval import Retriever
from dist_train.series_facts import describe
from memory_index.manifest import ManifestError
from model.pattern_encoder import build_encoder
from tests.helpers.sources import tiny_corpus_run


def everything_found(retriever: Retriever, context: torch.Tensor, start: int) -> list[torch.Tensor]:
    found = retriever.search(
        context, np.array([0] * len(context)), np.array([start] * len(context)), past_only=True
    )
    return [found.ids, found.distances, found.weights, *retriever.fetch(found)]


@pytest.fixture(scope="module", params=["dual", "anchored"])
def run(request: pytest.FixtureRequest, finished_run: Path, further_runs: dict[str, Path]):
    return load_run(finished_run if request.param == "dual" else further_runs["long"])


@pytest.mark.parametrize("start", [130, 250, 10_000])
def test_it_finds_and_reads_the_same(run: LoadedRun, tmp_path: Path, start: int):
    assert run.retriever is not None
    told = write_memory(tmp_path / "memory", run.retriever)
    again = read_memory(tmp_path / "memory", run.config, run.series, told)
    variates = run.retriever.data.num_variates
    context = torch.randn(3, 48, variates, generator=torch.Generator().manual_seed(0))
    for one, other in zip(
        everything_found(run.retriever, context, start),
        everything_found(again, context, start),
        strict=True,
    ):
        assert torch.equal(one, other)
    assert again.live.version == run.retriever.live.version


def test_a_bank_of_other_entries_is_refused(run: LoadedRun, tmp_path: Path):
    assert run.retriever is not None
    told = write_memory(tmp_path / "memory", run.retriever)
    other = replace(run.config, bank=replace(run.config.bank, bank_stride=2))
    with pytest.raises(ManifestError, match=r"does not exist; .* Export the run anew"):
        read_memory(tmp_path / "memory", other, run.series, told)


@pytest.mark.parametrize("scope", ["both", "source", "across"])
@pytest.mark.parametrize("key", ["anchored", "dual"])
def test_the_memory_of_several_sources_finds_the_same_too(tmp_path: Path, scope: str, key: str):
    config = tiny_corpus_run(tmp_path)
    sources = config.data.sources
    assert sources is not None
    # One that others may retrieve from although nothing was trained on it, and one without a row.
    kept = [sources[0], replace(sources[1], percent=0, memory_percent=60)]
    kept.append(replace(sources[1], name="unknown", percent=0, memory_percent=0))
    config = replace(
        config,
        data=replace(config.data, sources=kept),
        gram=replace(config.gram, retrieval_key=key, retrieval_scope=scope),
        bank=replace(config.bank, num_samples=700),
    )
    data = load_forecast_data(config.data)
    off = ("unknown",) if scope == "both" else ()
    # As another machine might have chosen where nobody says which index.
    chosen = replace(config.bank, index="hnsw" if scope == "source" else "auto")
    retriever = Retriever(data, config.gram, chosen, off=off)
    encoder = build_encoder(config.gram, config.data.seq_len)
    retriever.refresh(encoder.state_dict())
    told = write_memory(tmp_path / "memory", retriever)
    assert json.loads(json.dumps(told)) == told
    # A limit that was met by sharing it between ranks says nothing of what was exported.
    config = replace(config, bank=replace(config.bank, memory_gib=1e-9))
    again = read_memory(tmp_path / "memory", config, describe(data), told)
    assert again.off == off
    assert again.live.version == retriever.live.version
    context = torch.randn(12, 24, 1, generator=torch.Generator().manual_seed(0))
    series = np.arange(12) % len(data.series_set.series)
    some = 0
    for start in (0, 100, 300, 10_000):
        starts = np.full(12, start)
        found, wanted = (
            one.search(context, series, starts, past_only=True) for one in (again, retriever)
        )
        assert torch.equal(found.ids, wanted.ids)
        assert torch.equal(found.distances, wanted.distances)
        for mine, theirs in zip(again.fetch(found), retriever.fetch(wanted), strict=True):
            assert torch.equal(mine, theirs)
        some += int((found.ids >= 0).sum())
    assert some > 0
