"""dist_train/tracking.py: one JSON object per line, whole whenever the process ends."""

import json
from pathlib import Path

import pytest

from dist_train.tracking import Tracker


def lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_every_call_is_one_line_with_step_and_time(tmp_path: Path):
    with Tracker(tmp_path, enabled=True) as tracker:
        tracker.log(1, {"train/loss": 0.5})
        tracker.log(2, {"val/mse": 0.25, "perf/rss_gib": 1.0})
    first, second = lines(tmp_path)
    assert first == {"step": 1, "time_s": first["time_s"], "train/loss": 0.5}
    assert (second["step"], second["val/mse"], second["perf/rss_gib"]) == (2, 0.25, 1.0)
    assert 0 <= first["time_s"] <= second["time_s"]


def test_a_line_is_on_disk_before_the_file_is_closed(tmp_path: Path):
    with Tracker(tmp_path, enabled=True) as tracker:
        tracker.log(1, {"train/loss": 0.5})
        assert len(lines(tmp_path)) == 1


def test_what_was_logged_survives_an_error(tmp_path: Path):
    with pytest.raises(RuntimeError), Tracker(tmp_path, enabled=True) as tracker:  # noqa: PT012
        tracker.log(1, {"train/loss": 0.5})
        raise RuntimeError
    assert lines(tmp_path)[0]["train/loss"] == 0.5


def test_a_second_tracker_goes_on_after_the_first(tmp_path: Path):
    for step in (1, 2):
        with Tracker(tmp_path, enabled=True) as tracker:
            tracker.log(step, {"train/loss": 0.5})
    assert [line["step"] for line in lines(tmp_path)] == [1, 2]


def test_other_ranks_write_nothing(tmp_path: Path):
    with Tracker(tmp_path, enabled=False) as tracker:
        tracker.log(1, {"train/loss": 0.5})
    assert list(tmp_path.iterdir()) == []
