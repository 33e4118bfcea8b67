"""Training over two sources of different frequency, with one memory: decided, resumed, loaded."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dist_train.checkpoint import Checkpoint, load_checkpoint
from dist_train.config import RunConfig
from dist_train.data.collate import Collator
from dist_train.explanation import analogues, explain
from dist_train.export import export, export_run, load_export
from dist_train.loading import LoadedRun, load_run
from dist_train.prediction import predict
from dist_train.run_folder import step_folders
from memory_index.bank_union import BankUnion
from memory_index.store import bank_folders
from model.config import GramConfig
from tests.helpers.interrupted import Job, interrupted, run_jobs
from tests.helpers.runs import losses, numbers
from tests.helpers.sources import tiny_corpus_run

pytestmark = pytest.mark.ranks

STEPS, CUT = 8, 5
# A bank is begun after step 4 and searched from step 7 on: it is being built at the cut.
AUTO = GramConfig(use_gram="auto", d_repr=24, temperature=0.05, refresh_every=4, refresh_lag=3)


def run_of(folder: Path, name: str, gram: GramConfig) -> RunConfig:
    base = tiny_corpus_run(folder, name=name, gram=gram)
    model = replace(base.model, dropout=0.2, anchor="none")
    train = replace(base.train, batch_size=90, max_steps=STEPS, eval_every=3, log_every=2)
    return replace(base, model=model, train=train)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of this file; they share one start of DeepSpeed."""
    folder = tmp_path_factory.mktemp("runs")
    everywhere = run_of(folder, "everywhere", replace(AUTO, use_gram=True))
    everywhere = replace(everywhere, data=replace(everywhere.data, val_series=1))
    whole, stopped = (run_of(folder, name, AUTO) for name in ("whole", "stopped"))
    first, second = interrupted(stopped, CUT)
    plain: list[Job] = [(everywhere, None, None), (whole, None, None)]
    run_jobs([*plain, first], 2)
    run_jobs([second], 2)
    return folder / "runs"


def last_of(run: Path) -> Checkpoint:
    return load_checkpoint(step_folders(run)[0])


@pytest.mark.parametrize("name", ["everywhere", "whole"])
def test_a_memory_of_two_frequencies_is_trained_with(runs: Path, name: str):
    found = losses(runs / name)
    assert len(found) == STEPS // 2
    assert np.isfinite(found).all()
    metrics = numbers(runs / name)
    alarm = next(line for line in metrics if "retrieval/train_over_repeat_last" in line)
    assert alarm["retrieval/overlaps"] == 0
    names = {folder.root.name for folder in bank_folders(runs / name / "bank")}
    assert names == {"hours", "quarters"}


def neighbours_of(run: LoadedRun, source: int) -> torch.Tensor:
    """Whether rows of test windows of one source get neighbours. Shape (R, K), bool."""
    assert run.retriever is not None
    data = run.retriever.data
    part = slice(*data.first_series[source : source + 2].tolist())
    ids = data.windows["test"].even_sample(9, part)
    batch = Collator(data.windows["test"], None)(ids.tolist())
    return run.retriever.retrieve(batch, "test").valid


def test_who_asks_for_the_memory_gets_it_everywhere(runs: Path):
    run = load_run(runs / "everywhere")
    assert run.retriever is not None
    assert run.retriever.off == ()
    assert all(neighbours_of(run, source).all() for source in (0, 1))


def test_validation_decides_for_each_source_and_the_run_remembers(runs: Path):
    assert last_of(runs / "whole").training["closed_form"]["off"] == ["quarters"]
    for name in ("whole", "stopped"):
        run = load_run(runs / name)
        assert run.retriever is not None
        assert run.retriever.off == ("quarters",)
        assert isinstance(run.retriever.bank, BankUnion)
        assert neighbours_of(run, 0).all()
        assert not neighbours_of(run, 1).any()


def test_new_windows_of_each_source_find_histories_that_had_ended(runs: Path):
    run = load_run(runs / "everywhere")
    assert run.retriever is not None
    seq_len, named = run.config.data.seq_len, set[str]()
    for source in run.retriever.data.sources:
        # Such as are in the middle of the training rows too.
        forecasts = predict(run, source.series_set, cutoffs=(0, 400), with_evidence=True)
        rows = explain(run, forecasts)
        for forecast, row in zip(forecasts, rows, strict=True):
            begin = forecast.series.dates[forecast.end - seq_len]
            assert row.series == forecast.series.id
            assert row.histories
            assert all(one.future_end < begin for one in row.histories)
            named |= {one.series.split("/")[0] for one in row.histories}
            assert np.isfinite(analogues(run, forecast)[0, : len(row.histories)]).all()
    assert named == {"hours", "quarters"}


def test_exported_it_forecasts_without_its_data(runs: Path, tmp_path: Path):
    run = load_run(runs / "whole")
    assert run.retriever is not None
    sets = [source.series_set for source in run.retriever.data.sources]
    place = export_run(runs / "whole", tmp_path / "model")
    names = {path.name for path in (place / "memory").iterdir() if path.is_dir()}
    assert names == {"hours", "quarters"}
    again = load_export(place)
    assert again.retriever is not None
    assert again.retriever.off == ("quarters",)
    twice = load_export(export(again, place, tmp_path / "twice"))
    for series_set in sets:
        wanted = predict(run, series_set, cutoffs=(0, 400), with_evidence=True)
        for other in (again, twice):
            found = predict(other, series_set, cutoffs=(0, 400), with_evidence=True)
            for mine, theirs in zip(found, wanted, strict=True):
                np.testing.assert_array_equal(mine.values, theirs.values)
            assert explain(other, found) == explain(run, wanted)


def test_a_run_that_was_stopped_is_the_run_that_was_not(runs: Path):
    assert numbers(runs / "stopped") == numbers(runs / "whole")
    one, two = last_of(runs / "whole"), last_of(runs / "stopped")
    assert one.step == two.step == STEPS
    for name in ("model", "optimizer", "memory", "memory_next", "closed_form"):
        mine, theirs = getattr(one, name), getattr(two, name)
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[key], theirs[key]) for key in mine), name
    assert one.manifest["bank"] == two.manifest["bank"]
    assert one.training["closed_form"] == two.training["closed_form"]
    assert len(one.manifest["bank"].split("+")) == 2
