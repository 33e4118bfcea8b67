"""dist_train/exported_memory.py: the memory finds from its own folder what it found before."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dist_train.config import ConfigError
from dist_train.data.windows import load_forecast_data
from dist_train.exported_memory import read_memory, write_memory
from dist_train.loading import LoadedRun, load_run
from dist_train.retrieval import Retriever
from memory_index.manifest import ManifestError
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


def test_the_memory_of_several_sources_stays_with_its_run(tmp_path: Path):
    config = tiny_corpus_run(tmp_path)
    gram = replace(config.gram, retrieval_key="anchored")
    retriever = Retriever(load_forecast_data(config.data), gram, config.bank)
    retriever.refresh({})
    with pytest.raises(ConfigError, match="data.sources: the memory of several sources cannot be"):
        write_memory(tmp_path / "memory", retriever)
    assert not (tmp_path / "memory").exists()
