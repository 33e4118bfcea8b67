"""dist_train/tracking.py: one JSON object per line, whole whenever the process ends."""

import json
from pathlib import Path

import pytest

from dist_train import tracking
from dist_train.tracking import Tracker
from tests.helpers.small_disk import fill, small_disk


def lines(folder: Path, name: str = "metrics.jsonl") -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def steps(folder: Path, name: str = "metrics.jsonl") -> list[float]:
    return [line["step"] for line in lines(folder, name)]


def write(folder: Path, *numbers: int) -> None:
    with Tracker(folder, enabled=True, resume_at=10**9) as tracker:
        for step in numbers:
            tracker.log(step, {"train/loss": 0.5})


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


def test_a_resumed_run_goes_on_after_the_lines_that_hold(tmp_path: Path):
    write(tmp_path, 1, 2)
    with Tracker(tmp_path, enabled=True, resume_at=2) as tracker:
        tracker.log(3, {"train/loss": 0.5})
    assert steps(tmp_path) == [1, 2, 3]
    assert not (tmp_path / "metrics.superseded.jsonl").exists()


def test_lines_of_steps_that_are_done_again_are_moved_and_not_lost(tmp_path: Path):
    write(tmp_path, 0, 1, 2, 3)
    first = lines(tmp_path)
    with Tracker(tmp_path, enabled=True, resume_at=1) as tracker:
        tracker.log(2, {"train/loss": 0.25})
    assert steps(tmp_path) == [0, 1, 2]
    assert lines(tmp_path)[:2] == first[:2]
    assert lines(tmp_path, "metrics.superseded.jsonl") == first[2:]
    with Tracker(tmp_path, enabled=True, resume_at=0):
        pass
    assert steps(tmp_path) == [0]
    assert steps(tmp_path, "metrics.superseded.jsonl") == [2, 3, 1, 2]


def test_a_test_score_is_of_the_run_that_ended_and_is_moved(tmp_path: Path):
    with Tracker(tmp_path, enabled=True) as tracker:
        tracker.log(4, {"train/loss": 0.5})
        tracker.log(4, {"test/mse/ridge": 0.5})
    with Tracker(tmp_path, enabled=True, resume_at=4):
        pass
    assert [sorted(line) for line in lines(tmp_path)] == [["step", "time_s", "train/loss"]]
    assert "test/mse/ridge" in lines(tmp_path, "metrics.superseded.jsonl")[0]


def test_a_run_that_begins_anew_moves_all_lines_of_the_one_before(tmp_path: Path):
    write(tmp_path, 0, 1)
    with Tracker(tmp_path, enabled=True) as tracker:
        tracker.log(0, {"val/mse": 0.5})
    assert [sorted(line) for line in lines(tmp_path)] == [["step", "time_s", "val/mse"]]
    assert steps(tmp_path, "metrics.superseded.jsonl") == [0, 1]


@pytest.mark.parametrize("torn", ['{"step": 2, "tra', '{"step": 2}', "\ufffd\ufffd", "[2]", "7"])
def test_a_last_line_that_was_cut_off_spoils_no_other(tmp_path: Path, torn: str):
    write(tmp_path, 1)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(torn)  # and no end of the line
    with Tracker(tmp_path, enabled=True, resume_at=2) as tracker:
        tracker.log(3, {"train/loss": 0.5})
    whole = torn == '{"step": 2}'
    assert steps(tmp_path) == ([1, 2, 3] if whole else [1, 3])
    if not whole:
        assert (tmp_path / "metrics.superseded.jsonl").read_text() == torn + "\n"


def test_a_kill_while_lines_are_moved_loses_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write(tmp_path, 1, 2)

    def killed(path: Path, text: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tracking, "write_text", killed)
        with pytest.raises(KeyboardInterrupt):
            Tracker(tmp_path, enabled=True, resume_at=1)
    assert steps(tmp_path) == [1, 2]
    with Tracker(tmp_path, enabled=True, resume_at=1):
        pass
    assert steps(tmp_path) == [1]
    assert set(steps(tmp_path, "metrics.superseded.jsonl")) == {2}


def test_other_ranks_write_nothing(tmp_path: Path):
    with Tracker(tmp_path, enabled=False) as tracker:
        tracker.log(1, {"train/loss": 0.5})
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_once_and_leaves_no_torn_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    with small_disk(tmp_path / "disk", 64) as disk, Tracker(disk, enabled=True) as tracker:
        tracker.log(1, {"train/loss": 0.5})
        fill(disk / "ballast")
        # The file's last page has room: lines fit until one does not, in part.
        for step in range(2, 300):
            tracker.log(step, {"train/loss": 0.5})
        written = steps(disk)
        assert written == list(range(1, len(written) + 1))
        assert 1 < len(written) < 299
        (disk / "ballast").unlink()
        tracker.log(300, {"train/loss": 0.5})
        assert steps(disk) == [*written, 300]
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert f"{disk / 'metrics.jsonl'} cannot be written (No space left on device)" in error


def test_a_resumed_run_on_a_full_disk_is_not_ended_by_its_metrics(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    with small_disk(tmp_path / "disk", 64) as disk:
        write(disk, 1, 2)
        fill(disk / "ballast")
        with Tracker(disk, enabled=True, resume_at=1):
            pass
        assert steps(disk) == [1, 2]  # nothing lost
    assert "No space left on device" in capsys.readouterr().err


def test_a_file_that_cannot_be_opened_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "metrics.jsonl").mkdir()
    with Tracker(tmp_path, enabled=True) as tracker:
        tracker.log(1, {"train/loss": 0.5})
    assert "metrics.jsonl cannot be written (Is a directory)" in capsys.readouterr().err


def test_a_validation_that_comes_again_leaves_no_second_line(tmp_path: Path):
    lines = [
        {"step": 2, "val/mse": 1.0},
        {"step": 4, "train/loss": 2.0},
        {"step": 4, "val/mse": 3.0},
    ]
    path = tmp_path / "metrics.jsonl"
    for again, kept in ((True, lines[:2]), (False, lines)):
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        with Tracker(tmp_path, enabled=True, resume_at=4, validates_again=again):
            pass
        assert [json.loads(line) for line in path.read_text().splitlines()] == kept
