"""benchmarks/transfer.py: who is held out, what leaks, and all of it once on small series."""

import json

import numpy as np
import pandas as pd
import pytest

from benchmarks.transfer import DATASETS, TWINS, configure, count_late, main
from dist_train.retrieval import Retriever
from memory_index.config import BankConfig
from memory_index.exclusion import Exclusion
from model.config import GramConfig
from tests.helpers.forecast_data import data_of_sources, source_of

SOURCES = [{"dataset": name} for name in DATASETS]


@pytest.mark.parametrize("target", range(len(DATASETS)), ids=DATASETS)
def test_the_target_comes_first_and_its_twin_not_at_all(target: int):
    entries = configure(SOURCES, target, 10, "own")
    assert entries[0] == {"dataset": DATASETS[target], "percent": 10, "memory_percent": 100}
    others = [entry["dataset"] for entry in entries[1:]]
    left_out = {DATASETS[target], TWINS.get(DATASETS[target])}
    assert others == [name for name in DATASETS if name not in left_out]
    assert all("percent" not in entry for entry in entries[1:])
    assert configure(SOURCES, target, 0, "others")[0]["memory_percent"] == 0


def test_files_have_no_twin():
    sources = [{"path": name} for name in ("a.csv", "b.csv", "c.csv")]
    entries = configure(sources, 1, 0, "own")
    assert [entry["path"] for entry in entries] == ["b.csv", "a.csv", "c.csv"]


def test_what_ends_after_a_window_begins_is_late(monkeypatch: pytest.MonkeyPatch):
    dates = pd.date_range("2020", periods=500, freq="h").to_numpy()
    rng = np.random.default_rng(0)
    sources = [source_of(name, [(dates, rng.normal(size=500))]) for name in ("a", "b")]
    data = data_of_sources(sources, 24, 8)
    gram = GramConfig(use_gram=True, retrieval_key="anchored", top_k=3)
    retriever = Retriever(data, gram, BankConfig())
    retriever.refresh({})
    late, retrieved = count_late(retriever)
    assert late == 0
    assert retrieved > 0

    # Found in the future on purpose: every entry of the memory, for windows of its own time.
    retriever.data.windows["test"] = retriever.data.windows["train"]
    nothing = Exclusion(seq_len=0, pred_len=0, past_only=False)
    monkeypatch.setattr(Retriever, "exclusion", lambda self, *, past_only: nothing)
    late, retrieved = count_late(retriever)
    assert 0 < late <= retrieved


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_quick_trains_for_real(capfd: pytest.CaptureFixture[str]):
    main(["--quick", "--targets", "days", "--percents", "0", "100", "--features", "32"])
    found = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert [row["target"] for row in found["joint"]] == ["hours", "quarters", "days"]
    seen = {(row["percent"], row["memory"]): row for row in found["rows"]}
    assert list(seen) == [(0, "others"), (0, "own"), (100, "others"), (100, "own")]
    assert (seen[0, "others"]["windows_seen"], seen[0, "others"]["entries_seen"]) == (0, 0)
    assert seen[0, "own"]["entries_seen"] > 0
    assert seen[0, "own"]["ridge_mse"] is None
    assert seen[100, "own"]["windows_seen"] > 1000
    assert all(row["late"] == 0 < row["retrieved"] for row in found["rows"])
    assert all(0 < row["mse"] < 2 for row in (*found["joint"], *found["rows"]))
