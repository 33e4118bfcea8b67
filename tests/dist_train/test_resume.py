"""dist_train/resume.py: which checkpoint a run goes on from, whether it may, and what is kept."""

import hashlib
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import MISSING, fields, is_dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch

from dist_train import memory_build, preflight, resume, run_folder, session, train
from dist_train.checkpoint import (
    FILES_OF_FORMAT_2,
    CheckpointError,
    Content,
    load_checkpoint,
    save_checkpoint,
)
from dist_train.config import (
    ConfigError,
    DeepSpeedConfig,
    RunConfig,
    TrainConfig,
    config_to_yaml,
    load_saved_config,
)
from dist_train.data.config import DataError, SourceConfig
from dist_train.resume import choose, find_newest, set_aside
from dist_train.run_folder import MAY_DIFFER, differences, step_folders
from dist_train.session import Resume, train_and_score
from dist_train.stop_signals import StopRequestedError
from dist_train.trainer import Trainer
from memory_index.atomic_file import write_text
from memory_index.groups import OtherRankError
from memory_index.store import BankFolder
from model.config import GramConfig, TaprConfig
from tests.helpers.interrupted import quick, stopping_after
from tests.helpers.ranks import run_ranks
from tests.helpers.runs import tiny_run


def config_in(folder: Path, **changes: Any) -> RunConfig:
    return replace(RunConfig(name="a", runs_dir=str(folder)), **changes)


def put(config: RunConfig, name: str, step: int, *, training: bool = True) -> Path:
    """Write a checkpoint, whole and empty, into the folder of a run."""
    folder = config.run_folder / name
    save_checkpoint(
        folder,
        Content(
            model={"a": torch.ones(1)},
            series={"checksum": "0"},
            training={"state": {}} if training else {},
        ),
        config=config_to_yaml(config),
        facts={"step": step, "val_mse": 0.5, "bank": None},
    )
    return folder


def damage(folder: Path) -> None:
    file = folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def found(config: RunConfig) -> tuple[str | None, list[str]]:
    checkpoint, skipped = find_newest(config.run_folder)
    return (None if checkpoint is None else checkpoint.folder.name), skipped


def test_the_newest_checkpoint_is_found_by_its_step(tmp_path: Path):
    config = config_in(tmp_path)
    assert found(config) == (None, [])
    for step in (9, 10):
        put(config, f"step_{step}", step)
    put(config, "best", 4)
    assert found(config) == ("step_10", [])
    put(config, "best", 11)
    assert found(config) == ("best", [])
    put(config, "step_11", 11)  # saved after best, when all that is due after the step was done
    assert found(config) == ("step_11", [])


def test_a_newer_one_that_is_damaged_or_incomplete_is_passed_over_and_named(tmp_path: Path):
    config = config_in(tmp_path)
    for step in (1, 2, 3, 4):
        put(config, f"step_{step}", step)
    damage(config.run_folder / "step_4")
    (config.run_folder / "step_3/manifest.json").unlink()
    (config.run_folder / "step_2/optimizer.safetensors").unlink()
    name, skipped = found(config)
    assert name == "step_1"
    assert [reason.split(":")[0].split("/")[-2:] for reason in skipped] == [
        ["step_4", "model.safetensors"],
        ["a", "step_3"],
        ["step_2", "optimizer.safetensors"],
    ]


def test_a_folder_that_holds_another_step_than_its_name_says_is_passed_over(tmp_path: Path):
    config = config_in(tmp_path)
    put(config, "step_1", 1)
    shutil.copytree(config.run_folder / "step_1", config.run_folder / "step_9")
    name, (reason,) = found(config)
    assert name == "step_1"
    assert reason.endswith("step_9: holds step 1, not 9.")


def test_a_damaged_best_is_named_and_steps_are_taken(tmp_path: Path):
    config = config_in(tmp_path)
    put(config, "step_1", 1)
    damage(put(config, "best", 2))
    name, (reason,) = found(config)
    assert name == "step_1"
    assert "best/model.safetensors: altered" in reason


def test_one_without_the_state_of_a_training_is_passed_over(tmp_path: Path):
    config = config_in(tmp_path)
    put(config, "best", 2, training=False)
    name, (reason,) = found(config)
    assert name is None
    assert "holds weights only" in reason


def test_what_only_looks_like_a_checkpoint_is_left_alone(tmp_path: Path):
    config = config_in(tmp_path)
    put(config, "step_1", 1)
    for name in ("step_5.set_aside_1", "step_x", "step_07"):
        shutil.copytree(config.run_folder / "step_1", config.run_folder / name)
    (config.run_folder / "step_8").write_text("a note")
    assert found(config) == ("step_1", [])


def test_auto_begins_where_there_is_none_and_refuses_where_none_can_be_used(tmp_path: Path):
    config = config_in(tmp_path)
    assert choose(config, "auto") is None
    damage(put(config, "step_1", 1))
    before = tree(tmp_path)
    with pytest.raises(CheckpointError, match=r"no checkpoint of .* can be used.*step_1.*another"):
        choose(config, "auto")
    assert tree(tmp_path) == before


def test_other_settings_are_refused_with_key_old_and_new_value(tmp_path: Path):
    config = config_in(tmp_path)
    put(config, "step_1", 1)
    other = replace(config, train=TrainConfig(learning_rate=0.25, seed=7))
    with pytest.raises(ConfigError) as refused:
        choose(other, "auto")
    assert "train.learning_rate (0.0005, now 0.25)" in str(refused.value)
    assert "train.seed (2021, now 7)" in str(refused.value)
    assert "config.yaml" in str(refused.value)


def test_other_settings_are_refused_too_where_the_run_has_not_saved_anything(tmp_path: Path):
    config = config_in(tmp_path)
    config.run_folder.mkdir()
    write_text(config.run_folder / "config.yaml", config_to_yaml(config))
    assert choose(config, "auto") is None
    with pytest.raises(ConfigError, match=r"train.seed \(2021, now 7\)"):
        choose(replace(config, train=TrainConfig(seed=7)), "auto")


def test_use_gram_auto_is_what_the_run_has_decided(tmp_path: Path):
    config = config_in(tmp_path)
    put(replace(config, gram=GramConfig(use_gram=False)), "step_1", 1)
    chosen = choose(config, "auto")
    assert chosen is not None
    assert chosen.is_exact
    with pytest.raises(ConfigError, match=r"gram.use_gram \(False, now True\)"):
        choose(replace(config, gram=GramConfig(use_gram=True)), "auto")


@pytest.mark.parametrize("path", ["nowhere", "empty"])
def test_a_path_without_a_checkpoint_is_refused(tmp_path: Path, path: str):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=f"{path}.*: (no such folder|no checkpoint here)"):
        choose(config_in(tmp_path), str(tmp_path / path))


def test_a_path_may_be_a_checkpoint_or_a_run_and_says_whether_the_run_is_its_own(tmp_path: Path):
    config = config_in(tmp_path)
    for step in (1, 2):
        put(config, f"step_{step}", step)
    other = replace(config, name="b")
    for given, step in ((config.run_folder, 2), (config.run_folder / "step_1", 1)):
        for mine in (config, other):
            chosen = choose(mine, str(given))
            assert chosen is not None
            assert (chosen.checkpoint.step, chosen.in_place) == (step, mine is config)
            assert chosen.is_exact
    changed = choose(replace(other, train=TrainConfig(seed=7)), str(config.run_folder))
    assert changed is not None
    assert not changed.is_exact
    assert changed.differing == ("train.seed (2021, now 7)",)


def test_an_older_format_gives_its_weights_to_another_run_but_not_to_its_own(tmp_path: Path):
    config = config_in(tmp_path)
    put(config, "best", 2, training=False)
    chosen = choose(replace(config, name="b"), str(config.run_folder))
    assert chosen is not None
    assert not chosen.is_exact
    with pytest.raises(CheckpointError, match="holds weights only; start from them under another"):
        choose(config, str(config.run_folder / "best"))


def test_what_is_newer_or_damaged_is_renamed_and_nothing_is_lost(tmp_path: Path):
    config = config_in(tmp_path)
    for step in (1, 2, 3):
        put(config, f"step_{step}", step)
    damage(config.run_folder / "step_3")
    damage(put(config, "best", 3))
    (config.run_folder / "step_3.set_aside_1").mkdir()
    (config.run_folder / "result.json").write_text("{}")
    content = (config.run_folder / "step_3/model.safetensors").read_bytes()
    chosen = choose(config, str(config.run_folder / "step_1"))
    assert chosen is not None
    told = set_aside(config.run_folder, chosen)
    names = {path.name for path in config.run_folder.iterdir()}
    assert names == {
        "step_1", "step_2.set_aside_1", "step_3.set_aside_1", "step_3.set_aside_2",
        "best.set_aside_1", "result.json.set_aside_1",
    }  # fmt: skip
    assert (config.run_folder / "step_3.set_aside_2/model.safetensors").read_bytes() == content
    assert [line.split(" is now ")[1] for line in told] == [
        "step_3.set_aside_2", "step_2.set_aside_1", "best.set_aside_1", "result.json.set_aside_1",
    ]  # fmt: skip
    assert found(config) == ("step_1", [])


def choose_on(rank: int, world_size: int, config: RunConfig, out: Path) -> None:
    chosen = choose(config, "auto")
    assert chosen is not None
    facts = [chosen.checkpoint.step, chosen.checkpoint.folder.name, chosen.in_place]
    (out / f"chosen-{rank}").write_text(json.dumps([*facts, chosen.skipped, chosen.differing]))
    with pytest.raises(Exception, match="train.seed"):
        choose(replace(config, train=TrainConfig(seed=7)), "auto")
    assert choose(replace(config, name="new"), "auto") is None


@pytest.mark.ranks
def test_all_ranks_go_on_from_the_same_checkpoint(tmp_path: Path):
    config = config_in(tmp_path)
    for step in (1, 2, 3):
        put(config, f"step_{step}", step)
    damage(config.run_folder / "step_3")
    run_ranks(choose_on, 2, config, tmp_path)
    first, second = (json.loads((tmp_path / f"chosen-{rank}").read_text()) for rank in (0, 1))
    assert first == second
    assert first[:3] == [2, "step_2", True]
    assert len(first[3]) == 1


def keys_of(cls: type, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Every key of a configuration, its type and its default."""
    hints = get_type_hints(cls)
    for item in fields(cls):
        default = item.default_factory() if item.default is MISSING else item.default  # type: ignore[misc]
        if is_dataclass(default):
            yield from keys_of(type(default), f"{prefix}{item.name}.")
        else:
            yield f"{prefix}{item.name}", hints[item.name], default


KEYS = {key: (kind, default) for key, kind, default in keys_of(RunConfig)}


def another(kind: Any, default: Any) -> Any:
    """A value of a key that is not its default."""
    for choice in (default, *get_args(kind)):
        if isinstance(choice, bool):
            return not default
        if isinstance(choice, (int, float)):
            return choice + 1
    choices = [c for part in (kind, *get_args(kind)) for c in get_args(part) if isinstance(c, str)]
    return next((c for c in choices if c != default), "another")


def with_value(config: Any, key: str, value: Any) -> Any:
    """A copy with one key changed, whether or not that makes sense."""
    first, _, rest = key.partition(".")
    copy = object.__new__(type(config))
    for item in fields(config):
        object.__setattr__(copy, item.name, getattr(config, item.name))
    inner = with_value(getattr(config, first), rest, value) if rest else value
    object.__setattr__(copy, first, inner)
    return copy


@pytest.mark.parametrize("key", KEYS)
def test_a_key_may_differ_or_is_refused_by_name(key: str):
    kind, default = KEYS[key]
    value = another(kind, default)
    assert value != default
    told = differences(with_value(RunConfig(), key, value), RunConfig())
    may = [m for m in MAY_DIFFER if key == m or (m[-1] == "." and key.startswith(m))]
    assert told == ([] if may else [f"{key} ({default}, now {value})"])


def test_what_may_differ_are_keys_that_there_are():
    of_a_source = {f"data.sources.{field.name}" for field in fields(SourceConfig)}
    for may in MAY_DIFFER:
        if may in of_a_source:
            continue
        assert may in KEYS or (may[-1] == "." and any(key.startswith(may) for key in KEYS)), may


def test_what_decides_a_step_may_not_differ():
    for key in ("train.learning_rate", "train.batch_size", "train.schedule", "train.precision",
                "train.seed", "model.dropout", "gram.refresh_every", "data.pred_len",
                "train.eval_every", "bank.bank_stride", "backbone.llm_layers"):  # fmt: skip
        assert key in KEYS
        assert key not in MAY_DIFFER


def test_a_saved_configuration_differs_from_itself_in_nothing(tmp_path: Path):
    path = tmp_path / "config.yaml"
    for config in (
        RunConfig(),
        RunConfig(
            tapr=TaprConfig(trend_thresholds=[-0.1, 0.0, 0.1, 0.25]),
            gram=GramConfig(use_gram=True),
            deepspeed=DeepSpeedConfig(zero_stage=3, offload="all"),
        ),
    ):
        path.write_text(config_to_yaml(config))
        assert differences(config, load_saved_config(path)) == []


def test_a_finished_run_says_its_result_and_trains_nothing(
    finished_run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    before = tree(finished_run)
    monkeypatch.setattr(preflight, "check", lambda config: pytest.fail("it was not over"))
    arguments = ["--config", str(finished_run / "config.yaml"), "--resume", "auto"]
    assert train.main(arguments) == 0
    result = run_folder.find_result(finished_run)
    assert result is not None
    assert capsys.readouterr().out.strip() == run_folder.result_line(result)
    assert train.main([*arguments, "--train.seed", "7"]) == 2
    assert "train.seed (2021, now 7)" in capsys.readouterr().err
    assert tree(finished_run) == before


@pytest.mark.parametrize("given", [["--resume_counter", "1"],
                                   ["--resume", "auto", "--resume_counter", "-1"]])  # fmt: skip
def test_a_counter_needs_a_run_to_resume(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], given: list[str]
):
    assert train.main(["--runs_dir", str(tmp_path), *given]) == 2
    assert "needs --resume, and a count of at least 0" in capsys.readouterr().err


def load_a_best_that_one_rank_cannot_read(rank: int, world_size: int, folder: Path) -> None:
    assert resume.load_together(folder / "nowhere")[0] is None
    loaded, why = resume.load_together(folder)
    assert loaded is not None
    assert (loaded.step, why) == (3, "")
    with pytest.MonkeyPatch.context() as patch:
        if rank == 1:
            patch.setattr(resume, "load_checkpoint", load_none)
        with pytest.raises((CheckpointError, OtherRankError), match="torn"):
            resume.load_together(folder)
    (folder / f"well.{rank}").touch()


def load_none(folder: Path) -> None:
    raise CheckpointError("torn")


@pytest.mark.ranks
def test_ranks_agree_on_whether_there_is_a_best_model(tmp_path: Path):
    content = Content(model={"a": torch.ones(2)}, series={}, training={"state": {}})
    save_checkpoint(tmp_path / "best", content, config="name: n", facts={"step": 3})
    run_ranks(load_a_best_that_one_rank_cannot_read, 2, tmp_path / "best")
    assert len(list((tmp_path / "best").glob("well.*"))) == 2


# From here on runs are trained, one after the other in one process.

STEPS = 6


def tree(folder: Path) -> dict[str, str]:
    """Every file below a folder, by its checksum."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def small_run(folder: Path, name: str, **changes: Any) -> RunConfig:
    base = tiny_run(folder, name=name, tapr=TaprConfig(use_tapr=False))
    base = replace(
        base,
        gram=GramConfig(use_gram=True, d_repr=16, refresh_every=2, refresh_lag=1),
        model=replace(base.model, anchor="none", dropout=0.1),
        train=replace(base.train, max_steps=STEPS, eval_every=3),
        checkpoint=replace(base.checkpoint, save_steps=2, save_total_limit=2),
    )
    return replace(base, **changes)


def go(config: RunConfig, where: str | None = None, counter: int | None = None) -> str:
    """Train, as the command does; returns what was said."""
    wanted = None if where is None else Resume(where=where, counter=counter)
    with redirect_stdout(StringIO()) as said:
        train_and_score(config, preflight.check(config), wanted)
    return said.getvalue()


def scores(config: RunConfig) -> Any:
    result = json.loads((config.run_folder / "result.json").read_text())
    return [result[key] for key in ("scores", "steps", "best_step", "val_mse", "ridge_val_mse")]


def copy_of(run: RunConfig, name: str) -> RunConfig:
    config = replace(run, name=name)
    shutil.copytree(run.run_folder, config.run_folder)
    return config


def refusals(first: RunConfig, stopped: RunConfig) -> None:
    config = copy_of(stopped, "refused")
    busy = pytest.raises(ConfigError, match=r"another job runs there right now \(process \d+ on")
    with run_folder.locked(config.run_folder), busy:
        go(config, "auto")
    before = tree(config.run_folder)
    path = Path(first.runs_dir) / "other.csv"
    lines = Path(first.data.path or "").read_text().splitlines()
    lines[5] = lines[5].rsplit(",", 1)[0] + ",9.5"
    path.write_text("\n".join(lines) + "\n")
    config = replace(config, data=replace(config.data, path=str(path)))
    with pytest.raises(DataError, match="the file is not the one that .* was trained on"):
        go(config, "auto")
    assert tree(config.run_folder) == before


def in_another_folder(first: RunConfig, stopped: RunConfig) -> None:
    before = tree(first.run_folder)
    second = replace(first, name="second")
    said = go(second, str(first.run_folder / "step_4"))
    assert "step 4" in said
    assert scores(second) == scores(first)
    assert load_checkpoint(second.run_folder / "best").step == scores(first)[2]
    # From its last step: nothing is left to train, and the best model is there all the same.
    third = replace(first, name="third")
    go(third, str(first.run_folder))
    assert scores(third) == scores(first)
    assert load_checkpoint(third.run_folder / "best").step == scores(first)[2]
    assert tree(first.run_folder) == before


def stopped_while_it_encodes(first: RunConfig, stopped: RunConfig) -> None:
    """A stop lets go of the folder once nothing writes there: another job may begin at once."""
    config, begun, ended = replace(stopped, name="encoding"), list[Path](), list[Path]()
    build_bank = memory_build.build_bank

    def slow(folder: BankFolder, *given: Any) -> None:
        begun.append(folder.path)
        time.sleep(0.5)
        build_bank(folder, *given)
        ended.append(folder.path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory_build, "build_bank", slow)
        stopping_after(patch, 4, rank=0, who=0)
        with pytest.raises(StopRequestedError):
            go(config)
    assert len(begun) > 1
    assert ended == begun


def stopped_while_it_is_scored(first: RunConfig, stopped: RunConfig) -> None:
    """Also where it keeps no step: its training is not done again."""
    config = replace(first, name="scored", checkpoint=replace(first.checkpoint, save_steps=0))

    def stop(*given: Any) -> None:
        raise StopRequestedError("SIGTERM")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "measure", stop)
        with pytest.raises(StopRequestedError) as asked:
            go(config)
    assert asked.value.step == STEPS
    assert [path.name for path in step_folders(config.run_folder)] == [f"step_{STEPS}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_train_step", lambda *given: pytest.fail("it was over"))
        go(config, "auto")
    assert scores(config) == scores(first)
    assert step_folders(config.run_folder) == []


def another_horizon(first: RunConfig, stopped: RunConfig) -> None:
    assert first.data.pred_len == 12
    config = replace(first, name="horizon", data=replace(first.data, pred_len=24))
    said = go(config, str(first.run_folder))
    assert "data.pred_len (12, now 24)" in said
    assert said.count("aligned to width") == 1
    assert "of width 12 were aligned to width 24 by linear interpolation" in said
    assert scores(config)[1] == STEPS
    (entry,) = map(json.loads, (config.run_folder / "resumes.jsonl").read_text().splitlines())
    assert (entry["exact"], entry["step"]) == (False, STEPS)


def an_older_format(first: RunConfig, stopped: RunConfig) -> None:
    old = Path(first.runs_dir) / "old"
    shutil.copytree(first.run_folder / "best", old / "best")
    for path in (old / "best").iterdir():
        if path.name not in (*FILES_OF_FORMAT_2, "manifest.json"):
            path.unlink()
    manifest = json.loads((old / "best/manifest.json").read_text())
    del manifest["manifest_sha256"]
    manifest["sha256"] = {name: manifest["sha256"][name] for name in FILES_OF_FORMAT_2}
    (old / "best/manifest.json").write_text(json.dumps(manifest | {"format": 2}))
    for number, where in enumerate((old, old / "best")):
        config = replace(first, name=f"from-old-{number}", train=replace(first.train, max_steps=2))
        assert "its format (2)" in go(config, str(where))
        assert scores(config)[1] == 2


def without_its_bank(first: RunConfig, stopped: RunConfig) -> None:
    config = copy_of(stopped, "bankless")
    shutil.rmtree(config.run_folder / "bank")
    go(config, "auto")
    assert scores(config) == scores(first)
    assert any((config.run_folder / "bank").iterdir())


def damaged_best(first: RunConfig, stopped: RunConfig) -> None:
    config = copy_of(stopped, "damaged")
    damage(config.run_folder / "best")
    said = go(config, "auto")
    assert "best is now best.set_aside_1" in said
    assert "passed over" in said
    assert load_checkpoint(config.run_folder / "best").step == scores(config)[2]
    # At its end, too, where all validations have been: it is validated once more.
    config = copy_of(first, "damaged-at-end")
    (config.run_folder / "result.json").unlink()
    damage(config.run_folder / "best")
    go(config, "auto")
    assert scores(config)[2] == load_checkpoint(config.run_folder / "best").step == STEPS


def an_earlier_best(first: RunConfig, stopped: RunConfig) -> None:
    """The best model could not be saved, and the one before it is still in its place."""
    config = copy_of(stopped, "earlier")
    known = load_checkpoint(config.run_folder / "step_4")
    assert known.training["state"]["best_step"] == 3
    earlier = load_checkpoint(config.run_folder / "step_2")
    shutil.rmtree(config.run_folder / "best")
    facts = {k: earlier.manifest[k] for k in ("step", "dtype", "backbone", "code", "bank")}
    save_checkpoint(
        config.run_folder / "best",
        earlier,
        config=config_to_yaml(config),
        facts=facts | {"val_mse": 1e-9},
    )
    said = go(config, "auto")
    assert "its best model, of step 3, is not there but an earlier one" in said
    assert scores(config)[2:4] == [2, 1e-9]


def with_a_counter(first: RunConfig, stopped: RunConfig) -> None:
    config = copy_of(stopped, "counted")
    go(config, "auto", counter=config.train.patience)
    assert scores(config)[1] == 4


def a_longer_course(first: RunConfig, stopped: RunConfig) -> None:
    config = copy_of(stopped, "longer")
    config = replace(config, train=replace(config.train, max_steps=STEPS + 1))
    assert f"note: the run now has {STEPS + 1} steps, not {STEPS}" in go(config, "auto")
    assert scores(config)[1] == STEPS + 1


def train_them(rank: int, world_size: int, folder: Path) -> None:
    first = small_run(folder, "first")
    with pytest.MonkeyPatch.context() as patch:
        quick(patch)
        go(first)
        stopped = small_run(folder, "stopped")
        with patch.context() as stop:
            stopping_after(stop, 4, rank, who=0)
            with pytest.raises(StopRequestedError):
                go(stopped)
        for scenario in (
            refusals, stopped_while_it_encodes, stopped_while_it_is_scored, in_another_folder,
            another_horizon, an_older_format, without_its_bank, damaged_best, an_earlier_best,
            with_a_counter, a_longer_course,
        ):  # fmt: skip
            scenario(first, stopped)
            (folder / scenario.__name__).touch()


@pytest.mark.ranks
def test_runs_go_on_in_their_folder_or_in_another_one(tmp_path: Path):
    run_ranks(train_them, 1, tmp_path, timeout_s=400)
