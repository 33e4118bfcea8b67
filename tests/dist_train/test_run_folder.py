"""dist_train/run_folder.py: a taken name is refused, a finished run is recognised."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from dist_train import run_folder
from dist_train.config import ConfigError, RunConfig, TrainConfig, config_to_yaml
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
