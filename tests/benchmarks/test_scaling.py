"""benchmarks/scaling.py: corpora of the size asked for, slopes, and all of it once, small."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import scaling_banks, scaling_corpus
from benchmarks.scaling import exponent, main
from benchmarks.scaling_start import write_config
from dist_train.config import load_run_config
from dist_train.data.windows import load_forecast_data


def test_a_corpus_has_at_least_the_windows_asked_for_and_few_more(tmp_path: Path):
    sources = scaling_corpus.build(tmp_path / "corpus", 100_000)
    config = load_run_config(write_config(tmp_path, sources, 10))
    data = load_forecast_data(config.data)
    windows = len(data.windows["train"])
    series = scaling_corpus.windows_of_a_series()
    assert 100_000 <= windows < 100_000 + 2 * series
    assert [source.series_set.frequency for source in data.sources] == ["h", "15min"]


def test_the_exponent_is_the_slope_of_logarithms():
    sizes = np.array([1e5, 1e6, 1e7])
    assert exponent(sizes, 3 * sizes**0.5) == pytest.approx(0.5)
    assert exponent(sizes, np.full(3, 7.0)) == pytest.approx(0)


def test_a_billion_entries_are_shared_by_their_gpus():
    paper = scaling_banks.on_paper(5000.0)
    assert list(paper) == [10**8, 10**9]
    for entries, row in paper.items():
        whole = entries * row["bytes_per_entry"] / 2**30
        assert row["shard_gib"] * row["gpus"] == pytest.approx(whole, rel=0.02)
        assert row["shard_gib"] <= scaling_banks.MEMORY_GIB
        assert row["build_cpu_s"] == pytest.approx(entries / row["gpus"] / 5000)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_quick_measures_for_real(capfd: pytest.CaptureFixture[str]):
    main(["--quick"])
    found = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert 0.5 < found["rss_growth"] < 2
    assert -0.5 < found["loading_overhead"] < 1
    assert 0.5 < found["weak_scaling_2"] < 3
    assert 0 < found["start_s"] < 300
    assert list(found["corpora"]) == ["10000", "100000"]
    assert all(bank["recall_at_5"] > 0.9 for bank in found["banks"].values())
    assert set(found["exponents"]) >= {"anonymous_gib over windows", "search_ms over entries"}
