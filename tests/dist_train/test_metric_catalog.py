"""dist_train/metric_catalog.py: what is listed is what runs log, and what the docs show."""

import json
import re
from pathlib import Path

import pytest

from dist_train.config import RunConfig
from dist_train.metric_catalog import FORECASTERS, HISTOGRAMS, METRICS, PANEL, STEP, TABLE
from tests.helpers import wandb_files

ROOT = Path(__file__).parents[2]


def logged(run: Path) -> set[str]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {name for line in lines for name in line} - {"step", "time_s"}


def names_of(run: Path, kinds: set[str]) -> None:
    found = logged(run)
    for name in found:
        owners = [metric for metric in METRICS if metric.names(name)]
        assert len(owners) == 1, f"{name} is listed {len(owners)} times"
        assert owners[0].when in kinds, name
    for metric in METRICS:
        if metric.when in kinds:
            assert any(metric.names(name) for name in found), f"{metric.name} is not logged"


LEARNED = {"always", "trend", "memory", "learned key"}


def test_a_run_on_a_cpu_logs_what_is_listed_and_nothing_else(finished_run: Path):
    names_of(finished_run, LEARNED)


@pytest.mark.ranks
def test_so_does_one_on_two_ranks_that_was_stopped(tracked_run: RunConfig):
    names_of(tracked_run.run_folder, LEARNED)


@pytest.mark.ranks
def test_wandb_has_the_same_names_and_those_of_media(tracked_run: RunConfig):
    found: set[str] = set()
    for file in wandb_files.files(tracked_run.run_folder):
        found |= {name for row in wandb_files.rows(wandb_files.records(file)) for name in row}
    media = {*HISTOGRAMS, PANEL, TABLE, STEP}
    assert found == logged(tracked_run.run_folder) | media


def test_every_forecaster_of_a_result_is_listed(finished_run: Path):
    scores = json.loads((finished_run / "result.json").read_text())["scores"]
    assert scores.keys() <= set(FORECASTERS)


def test_a_star_stands_for_one_word():
    (metric,) = [metric for metric in METRICS if metric.name == "test/mse/*"]
    assert metric.names("test/mse/seasonal naive")
    assert not metric.names("test/mse/a/b")
    assert not metric.names("test/mse/")
    assert not metric.names("xtest/mse/a")


def test_the_table_of_the_documentation_is_this_list():
    text = (ROOT / "docs/tracking.md").read_text()
    rows = re.findall(r"^\| `([^`]+)` \| ([^|]*) \| ([^|]*) \|(?: ([^|]*) \|)?$", text, re.M)
    shown = {
        name: (unit.strip(), meaning.strip(), when.strip()) for name, unit, meaning, when in rows
    }
    for metric in METRICS:
        when = "" if metric.when == "always" else metric.when
        assert shown.pop(metric.name) == (metric.unit, metric.meaning, when), metric.name
    for name, meaning in HISTOGRAMS.items():
        assert shown.pop(name) == ("", meaning, "wandb"), name
    assert shown.keys() == {PANEL, TABLE}
