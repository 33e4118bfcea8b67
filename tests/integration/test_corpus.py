"""A training over a built corpus is the training over its files, bit for bit."""

from dataclasses import replace
from pathlib import Path

import pytest

from dist_train.config import load_run_config
from dist_train.data_command import build
from tests.helpers.runs import numbers, train_runs
from tests.helpers.sources import run_over_sources

pytestmark = pytest.mark.ranks


def test_mapped_sources_train_like_files(tmp_path: Path):
    files = run_over_sources(tmp_path, "files")
    told = build(files, tmp_path / "corpus")
    mapped = load_run_config(Path(told["config"])).data
    data = replace(files.data, sources=mapped.sources)
    train_runs([files, replace(files, name="mapped", data=data)])
    first, second = (numbers(tmp_path / "runs" / name) for name in ("files", "mapped"))
    assert first == second
