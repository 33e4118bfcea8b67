"""benchmarks/step_time.py: its figures mean what they say, on made-up measurements."""

import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks import scaling_figure, step_time
from benchmarks.step_time import KINDS, LARGE, QUICKSTART, RANKS, SMALL, Model, figures, fit_link
from benchmarks.turns import Contestant
from dist_train.config import load_run_config
from dist_train.shapes import published_shape
from launch.hardware import HARDWARE, Link

FACTS = {"variates": 2, "prompt_tokens": 50, "entries": 36_000}
LINK = Link(bytes_per_s=2e9, latency_s=1e-4)


@pytest.fixture(scope="module")
def model() -> Model:
    config = load_run_config(QUICKSTART, ["--train.batch_size=8"])
    return Model(config, published_shape("HuggingFaceTB/SmolLM2-135M", 2), FACTS, 2)


def collectives_of(link: Link, cores: float) -> dict[tuple[int, str, int], float]:
    """What a ring over the link takes, by hand."""
    seconds = {}
    for ranks in RANKS[1:]:
        for kind in KINDS:
            for size in (SMALL, LARGE):
                hops = (ranks - 1) * (2 if kind == "all_reduce" else 1)
                sent = hops * (0 if size == SMALL else size) / ranks / link.bytes_per_s
                waited = hops * link.latency_s + sent
                seconds[ranks, kind, size] = waited * max(1.0, ranks / cores)
    return seconds


def round_of(cores: float = 2.0) -> dict[str, Any]:
    return {
        "lone": {"compute_s": 0.3, "optimizer_s": 0.01, "search_s": 0.02},
        "times": [0.29, 0.31],
        "cores": cores,
        "steps": {},
        "collectives": collectives_of(LINK, cores),
    }


@pytest.mark.parametrize("cores", [1.0, 1.6, 2.0])
def test_a_link_is_found_again_in_what_rings_over_it_take(cores: float):
    found = fit_link(collectives_of(LINK, cores), cores)
    assert found.bytes_per_s == pytest.approx(LINK.bytes_per_s)
    assert found.latency_s == pytest.approx(LINK.latency_s)


def test_a_right_prediction_has_no_error_and_a_wrong_one_has_its_share(model: Model):
    rounds = [round_of(), round_of(1.5), round_of()]
    for one in rounds:
        one["steps"] = {ranks: model.predict(one, ranks).total_s for ranks in RANKS}
    found = figures(model, rounds)
    assert found["error_max"] == pytest.approx(0, abs=1e-12)
    assert found["measured_ms_1"] == found["predicted_ms_1"]
    for one in rounds:
        one["steps"][4] *= 1.25
    found = figures(model, rounds)
    assert found["error_4"] == pytest.approx(-0.2)
    assert found["error_max"] == pytest.approx(0.2)
    assert found["error_2"] == pytest.approx(0, abs=1e-12)


def test_the_machine_is_what_was_measured(model: Model):
    one = model.predict(round_of(), 1)
    assert one.compute_s == pytest.approx(0.3)
    assert one.optimizer_s == pytest.approx(0.01)
    # With a core to spare the search is hidden; four ranks on two cores take twice as long.
    assert one.search_is_hidden
    assert 0.02 <= one.search_s < 0.021
    four = model.predict(round_of(), 4)
    assert four.compute_s == pytest.approx(0.6)
    assert four.search_exposed_s == pytest.approx(4 * one.search_s / 2, rel=0.05)


def test_a_job_of_many_ranks_is_no_better_than_proportional(model: Model):
    rounds = [round_of()]
    rounds[0]["steps"] = dict.fromkeys(RANKS, 1.0)
    found = figures(model, rounds)
    assert 0 < found["efficiency_1024_world"] <= found["efficiency_1024"] < 1
    assert found["spread"] > 0


def test_the_work_of_other_processes_is_told_apart():
    before = step_time._processor_seconds([])
    began = time.process_time()
    while time.process_time() - began < 1.0:
        sum(range(10_000))
    after = step_time._processor_seconds([])
    whole, own, wall = (late - early for late, early in zip(after, before, strict=True))
    assert own == pytest.approx(1.0, abs=0.1)  # what is read counts hundredths
    assert own <= whole + 0.1
    assert own <= wall + 0.1


class Adder:
    def __init__(self, start: int) -> None:
        self.total = start

    def add(self, number: int) -> int:
        self.total += number
        return self.total


@pytest.mark.slow
@pytest.mark.ranks
def test_contestants_can_be_asked_all_at_once():
    adders = [Contestant(f"adder {start}", Adder, start, wait=False) for start in (1, 2)]
    for adder in adders:
        adder.answer()
    for adder in adders:
        adder.ask("add", 10)
    assert [adder.answer() for adder in adders] == [11, 12]
    for adder in adders:
        with adder:
            assert adder.call("add", 1) in (12, 13)


def test_the_figure_is_drawn_and_the_tables_tell_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(scaling_figure, "STEPS", 3)
    path = tmp_path / "scaling.png"
    assert step_time.main(["--plot", str(path)]) == 0
    assert path.read_bytes().startswith(b"\x89PNG")
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert len(rows) == (2 + 9) + (2 + 11)
    assert sum("| 100.0 % |" in row for row in rows) == 9


def test_a_shared_bank_is_never_faster_than_a_copy():
    for setting in scaling_figure.SETTINGS:
        times = [
            scaling_figure.predict(setting, 1024, sharing).total_s
            for sharing in scaling_figure.SHARINGS
        ]
        assert times == sorted(times)


def test_the_models_of_the_figure_fit_their_gpus():
    memory = HARDWARE[scaling_figure.HARDWARE_NAME].memory_gib
    for setting in scaling_figure.SETTINGS:
        shape = published_shape(setting.name, setting.llm_layers)
        item = 0.52 if setting.load_in_4bit else 2
        weights = shape.num_layers * shape.matrix_weights_per_block * item
        weights += shape.embedding_weights * 2
        index = scaling_figure.ENTRIES * (4 * 256 + 8)
        assert (weights + index) / 2**30 < 0.9 * memory
