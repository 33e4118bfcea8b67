"""dist_train/run_folder.py: a taken name is refused, a finished run is recognised."""

import errno
import fcntl
import json
from dataclasses import replace
from pathlib import Path

import pytest

from dist_train import run_folder
from dist_train.config import (
    ConfigError,
    RunConfig,
    TrainConfig,
    config_to_yaml,
    load_saved_config,
)
from memory_index.atomic_file import write_text

IDENTITY = "the same"
RESULT = {
    "run": "a", "test_mse": 0.1, "ridge_mse": 0.2, "train_s": 1.0, "total_s": 2.0, "ranks": 1,
    "scores": {},
}  # fmt: skip


def config(folder: Path, **changes: object) -> RunConfig:
    return RunConfig(name="a", runs_dir=str(folder), **changes)  # type: ignore[arg-type]


def finish(run: RunConfig, **changes: object) -> None:
    run.run_folder.mkdir(parents=True)
    write_text(run.run_folder / "config.yaml", config_to_yaml(run))
    result = RESULT | {"identity": IDENTITY} | changes
    write_text(run.run_folder / "result.json", json.dumps(result))


def test_a_new_name_is_accepted(tmp_path: Path):
    run_folder.check_is_new(config(tmp_path))
    (tmp_path / "a").mkdir()
    run_folder.check_is_new(config(tmp_path))  # an empty folder holds nothing to lose


def test_a_taken_name_is_refused(tmp_path: Path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/config.yaml").touch()
    with pytest.raises(ConfigError, match=r"name=a: .*/a already holds an unfinished run"):
        run_folder.check_is_new(config(tmp_path))


def test_a_finished_run_is_refused(tmp_path: Path):
    finish(config(tmp_path))
    with pytest.raises(ConfigError, match="already holds a finished run"):
        run_folder.check_is_new(config(tmp_path))


def test_a_file_in_its_place_is_refused(tmp_path: Path):
    (tmp_path / "a").touch()
    with pytest.raises(ConfigError, match="is a file"):
        run_folder.check_is_new(config(tmp_path))


def test_a_runs_dir_that_is_a_file_is_refused(tmp_path: Path):
    (tmp_path / "notes").touch()
    for runs_dir in (tmp_path / "notes", tmp_path / "notes/deeper"):
        with pytest.raises(ConfigError, match=r"runs_dir=.*: .*/notes is a file; name a fold"):
            run_folder.check_is_new(config(runs_dir))
        with pytest.raises(ConfigError, match=r"runs_dir=.*: .*/notes is a file; name a fold"):
            run_folder.plan_start(config(runs_dir), IDENTITY)
    run_folder.check_is_new(config(tmp_path / "new/deeper"))


def test_the_nearest_folder_is_the_run_s_own_or_one_above_it(tmp_path: Path):
    assert run_folder.nearest_folder(config(tmp_path / "x/y")) == tmp_path
    assert run_folder.nearest_folder(config(tmp_path)) == tmp_path
    (tmp_path / "a").mkdir()
    assert run_folder.nearest_folder(config(tmp_path)) == tmp_path / "a"


def test_a_file_is_no_nearest_folder(tmp_path: Path):
    (tmp_path / "a").touch()
    with pytest.raises(ConfigError, match=r"name=a: .*/a is a file; choose another --name"):
        run_folder.nearest_folder(config(tmp_path))
    with pytest.raises(ConfigError, match=r"runs_dir=.*/a is a file; name a folder"):
        run_folder.nearest_folder(config(tmp_path / "a"))


def test_the_same_run_is_not_started_again(tmp_path: Path):
    finish(config(tmp_path))
    verb, line = run_folder.plan_start(config(tmp_path), IDENTITY)
    assert verb == "finished"
    assert json.loads(line) == {key: RESULT[key] for key in RESULT if key != "scores"}


def test_another_run_starts_beside(tmp_path: Path):
    finish(config(tmp_path))
    changed = config(tmp_path, train=TrainConfig(seed=1))
    assert run_folder.plan_start(changed, "other") == ("a-2", str(tmp_path / "a-2"))
    finish(replace(changed, name="a-2"), identity="other")
    assert run_folder.plan_start(changed, "other")[0] == "finished"


def test_an_unfinished_run_is_left_alone(tmp_path: Path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/metrics.jsonl").write_text("{}")
    assert run_folder.plan_start(config(tmp_path), IDENTITY)[0] == "a-2"
    assert (tmp_path / "a/metrics.jsonl").read_text() == "{}"


LIMITS = [{"max_steps": 12}, {"max_epochs": 7}, {"patience": 99}]


def keep_a_step(run: RunConfig) -> None:
    (run.run_folder / "step_6").mkdir()
    (run.run_folder / "step_6/manifest.json").touch()


def limited(run: RunConfig, limits: dict[str, int]) -> RunConfig:
    return replace(run, train=replace(run.train, **limits))  # type: ignore[arg-type]


def test_a_finished_run_has_its_result_where_nothing_more_is_asked_for(tmp_path: Path):
    run = config(tmp_path)
    finish(run)
    keep_a_step(run)
    result = run_folder.admit(run, "auto", None)
    assert result == RESULT | {"identity": IDENTITY}
    # Neither does what has no part in when it ends.
    assert run_folder.admit(replace(run, train=TrainConfig(log_every=3)), "auto", None) == result
    assert run_folder.plan_start(run, "other", where="auto")[0] == "finished"


@pytest.mark.parametrize("limits", LIMITS)
def test_a_finished_run_goes_on_with_another_limit_and_has_finished_with_that_then(
    limits: dict[str, int], tmp_path: Path
):
    run = config(tmp_path)
    finish(run)
    keep_a_step(run)
    longer = limited(run, limits)
    assert run_folder.admit(longer, "auto", None) is None
    assert run_folder.plan_start(longer, IDENTITY, where="auto") == ("a", str(run.run_folder))
    run_folder.write_limits(longer)  # as it does when it is through
    assert run_folder.admit(longer, "auto", None) is not None
    assert run_folder.admit(run, "auto", None) is None


def test_a_disk_that_does_not_answer_is_somebody_elses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / run_folder.LOCK_FILE).touch()
    assert not run_folder.is_locked(tmp_path)

    def fail(handle: int, kind: int) -> None:
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(fcntl, "flock", fail)
    assert run_folder.is_locked(tmp_path)


def test_the_same_line_again_goes_on_with_what_began_from_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
    run, other = config(tmp_path), tmp_path / "other"
    own = run.run_folder / "step_6"
    keep = run.run_folder / run_folder.RESUMES_FILE
    for where in (None, "auto", str(other), str(own)):
        assert run_folder.resume_of(run, where) == where
    own.mkdir(parents=True)
    (run.run_folder / "config.yaml").touch()
    keep.write_text(json.dumps({"checkpoint": str(other / "best")}) + "\n")
    with keep.open("a") as file:
        file.write(json.dumps({"checkpoint": str(own)}) + "\n")
    for where in (other, other / "best"):
        assert run_folder.resume_of(run, str(where)) == "auto"
        assert run_folder.plan_start(run, IDENTITY, where=str(where)) == ("a", str(run.run_folder))
    elsewhere = str(tmp_path / "elsewhere")
    for count, back in (("0", str(own)), ("1", "auto")):
        monkeypatch.setenv("SLURM_RESTART_COUNT", count)
        assert run_folder.resume_of(run, str(own)) == back
        assert run_folder.resume_of(run, elsewhere) == elsewhere
    with pytest.raises(ConfigError, match="already holds an unfinished run"):
        run_folder.plan_start(run, IDENTITY, where=elsewhere)
    keep.write_text("torn")
    assert run_folder.resume_of(run, str(other)) == str(other)


def test_a_finished_run_goes_on_with_another_count(tmp_path: Path):
    run = config(tmp_path)
    finish(run)
    keep_a_step(run)
    assert run_folder.admit(run, "auto", 0) is None
    assert run_folder.plan_start(run, IDENTITY, where="auto", counter=0)[0] == "a"


@pytest.mark.parametrize(
    ("limits", "counter", "asked"),
    [
        ({"max_steps": 12}, None, r"train.max_steps \(None, now 12\)\."),
        ({"patience": 99}, 0, r"train.patience \(15, now 99\); --resume_counter 0\."),
    ],
)
def test_a_finished_run_that_kept_no_step_is_refused_with_what_was_asked_for(
    limits: dict[str, int], counter: int | None, asked: str, tmp_path: Path
):
    run = config(tmp_path)
    finish(run)
    keep_a_step(run)
    (run.run_folder / "step_6").rename(run.run_folder / "step_6.set_aside_1")
    longer = limited(run, limits)
    message = rf"/a has finished, and has kept no step_<n> .* with {asked} .*--resume .*/a/best "
    with pytest.raises(ConfigError, match=message):
        run_folder.admit(longer, "auto", counter)
    with pytest.raises(ConfigError, match=message):
        run_folder.plan_start(longer, IDENTITY, where="auto", counter=counter)


def test_other_settings_of_a_finished_run_are_refused_whatever_its_limits(tmp_path: Path):
    finish(config(tmp_path))
    other = config(tmp_path, train=TrainConfig(seed=1, max_steps=12))
    with pytest.raises(ConfigError, match=r"holds a run with other settings: train.seed \(2021"):
        run_folder.admit(other, "auto", None)


def test_a_path_in_a_finished_run_goes_on_and_one_elsewhere_finds_the_name_taken(tmp_path: Path):
    run = config(tmp_path)
    finish(run)
    keep_a_step(run)
    for own in (run.run_folder, run.run_folder / "step_6", tmp_path / "./a/step_6"):
        assert run_folder.admit(run, str(own), None) is None
        assert run_folder.plan_start(run, IDENTITY, where=str(own)) == ("a", str(run.run_folder))
    with pytest.raises(ConfigError, match="already holds a finished run"):
        run_folder.plan_start(run, IDENTITY, where=str(tmp_path / "b/step_6"))


def test_a_config_file_is_written_again_only_for_other_limits(tmp_path: Path):
    run = config(tmp_path)
    finish(run)
    before = (run.run_folder / "config.yaml").read_bytes()
    run_folder.write_limits(replace(run, train=TrainConfig(log_every=3)))
    assert (run.run_folder / "config.yaml").read_bytes() == before
    longer = limited(run, {"max_steps": 12})
    run_folder.write_limits(longer)
    assert load_saved_config(run.run_folder / "config.yaml") == longer
