"""dist_train/checkpoint_writer.py: in the background, in order, the newest stay, a full disk."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dist_train import checkpoint_writer
from dist_train.checkpoint import Content, load_checkpoint
from dist_train.checkpoint_writer import BEST, CheckpointWriter
from dist_train.run_folder import step_folders, step_name
from tests.helpers.small_disk import fill, small_disk


def content(value: float, size: int = 4) -> Content:
    return Content(model={"a": torch.full((size,), value)}, series={}, training={"state": {}})


def facts(step: int, bank: str | None = None) -> dict[str, Any]:
    return {"step": step, "val_mse": 0.5, "bank": bank}


def open_writer(folder: Path, keep: int = 2, *, enabled: bool = True) -> CheckpointWriter:
    return CheckpointWriter(folder, "name: n\n", keep=keep, enabled=enabled)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def gated(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, list[str]]:
    """Let saves wait for an event; returns it and the names that were saved so far."""
    gate, done = threading.Event(), []
    save: Callable[..., None] = checkpoint_writer.save_checkpoint

    def wait_and_save(folder: Path, *given: Any, **options: Any) -> None:
        assert gate.wait(20)
        save(folder, *given, **options)
        done.append(folder.name)

    monkeypatch.setattr(checkpoint_writer, "save_checkpoint", wait_and_save)
    return gate, done


def test_a_checkpoint_is_written_beside_what_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    gate, done = gated(monkeypatch)
    writer = open_writer(tmp_path)
    writer.save("step_1", content(1.0), facts(1))
    assert names(tmp_path) == []
    gate.set()
    assert writer.wait()
    assert done == ["step_1"]
    assert load_checkpoint(tmp_path / "step_1").model["a"][0] == 1.0
    writer.close()


def test_no_more_than_two_wait_in_memory_and_they_are_written_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    gate, done = gated(monkeypatch)
    writer = open_writer(tmp_path, keep=5)
    writer.save("step_1", content(1.0), facts(1))
    writer.save(BEST, content(2.0), facts(1))
    third = threading.Thread(target=writer.save, args=("step_2", content(3.0), facts(2)))
    third.start()
    third.join(0.3)
    assert third.is_alive()  # it waits for the first one
    gate.set()
    third.join(20)
    assert not third.is_alive()
    writer.close()
    assert done == ["step_1", BEST, "step_2"]


def test_the_newest_are_kept_and_best_is_always(tmp_path: Path):
    writer = open_writer(tmp_path, keep=2)
    writer.save(BEST, content(0.0), facts(1))
    for step in (2, 9, 10, 11):
        writer.save(step_name(step), content(float(step)), facts(step))
    writer.close()
    assert names(tmp_path) == [BEST, "step_10", "step_11"]
    assert [path.name for path in step_folders(tmp_path)] == ["step_11", "step_10"]


def test_nothing_but_folders_of_steps_is_ever_deleted(tmp_path: Path):
    others = [
        "step_12.set_aside_1",
        "step_x",
        "step_",
        "step_007",
        "step_-1",
        "step_1.5",
        "mystep_1",
    ]
    for name in others:
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").touch()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/mine").touch()
    (tmp_path / "step_1").symlink_to("elsewhere")
    (tmp_path / "step_2").write_text("a note of mine")
    writer = open_writer(tmp_path, keep=1)
    for step in (3, 4):
        writer.save(step_name(step), content(float(step)), facts(step))
    writer.close()
    expected = sorted([*others, "elsewhere", "step_1", "step_2", "step_4"])
    assert names(tmp_path) == expected
    assert all((tmp_path / name / "mine").exists() for name in [*others, "elsewhere"])


def test_what_killed_processes_left_is_swept_but_never_a_best_model(tmp_path: Path):
    for name in (".step_1.gone", ".step_12.new", ".step_3.old", ".best.new", ".mine.new", "step_4"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").touch()
    checkpoint_writer.sweep(tmp_path)
    assert names(tmp_path) == [".best.new", ".mine.new", "step_4"]


def test_a_save_that_fails_is_reported_and_costs_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    save: Callable[..., None] = checkpoint_writer.save_checkpoint

    def failing(folder: Path, *given: Any, **options: Any) -> None:
        if folder.name == "step_2":
            raise OSError(5, "Input/output error")
        save(folder, *given, **options)

    monkeypatch.setattr(checkpoint_writer, "save_checkpoint", failing)
    writer = open_writer(tmp_path, keep=1)
    for step in (1, 2, 3):
        writer.save(step_name(step), content(float(step)), facts(step))
    assert not writer.wait()
    assert writer.wait()  # told once
    writer.close()
    error = capsys.readouterr().err
    assert error.count("warning:") == 1
    assert f"{tmp_path / 'step_2'} could not be saved (Input/output error)" in error
    assert names(tmp_path) == ["step_3"]


def test_other_ranks_write_nothing(tmp_path: Path):
    writer = open_writer(tmp_path, enabled=False)
    writer.save(BEST, content(1.0), facts(1, "bank"))
    assert writer.wait()
    assert writer.banks() == set()
    writer.close()
    assert names(tmp_path) == []


def test_the_banks_are_those_of_the_checkpoints_that_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    first = open_writer(tmp_path, keep=1)
    first.save(BEST, content(0.0), facts(1, "b"))
    for step in (1, 2, 3):
        first.save(step_name(step), content(0.0), facts(step, f"bank-{step}"))
    first.close()
    gate, _ = gated(monkeypatch)
    second = open_writer(tmp_path, keep=1)
    assert second.banks() == {"b", "bank-3"}  # of an earlier start; those of deleted ones are not
    second.save("step_4", content(0.0), facts(4, "bank-4"))
    assert second.banks() == {"b", "bank-3", "bank-4"}
    gate.set()
    second.close()
    assert second.banks() == {"b", "bank-4"}


def test_on_a_full_disk_the_old_checkpoints_stay_and_saving_goes_on_later(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    with small_disk(tmp_path / "disk", 600) as disk:
        writer = open_writer(disk, keep=3)
        writer.save(BEST, content(1.0, 1000), facts(1))
        writer.save("step_1", content(1.0, 1000), facts(1))
        assert writer.wait()
        fill(disk / "ballast", leaving=8192)
        writer.save(BEST, content(2.0, 9000), facts(2))
        writer.save("step_2", content(2.0, 9000), facts(2))
        assert not writer.wait()
        error = capsys.readouterr().err
        for name in (BEST, "step_2"):
            assert f"{disk / name} could not be saved (No space left on device)" in error
        assert names(disk) == ["ballast", BEST, "step_1"]
        assert load_checkpoint(disk / BEST).model["a"][0] == 1.0
        assert load_checkpoint(disk / "step_1").model["a"][0] == 1.0
        (disk / "ballast").unlink()
        writer.save("step_3", content(3.0, 9000), facts(3))
        assert writer.wait()
        # The best model of step 2 was not forgotten.
        assert load_checkpoint(disk / BEST).model["a"][0] == 2.0
        assert names(disk) == [BEST, "step_1", "step_3"]
        writer.close()


def test_a_best_model_that_never_could_be_saved_is_an_error_at_the_end(tmp_path: Path):
    with small_disk(tmp_path / "disk", 200) as disk:
        writer = open_writer(disk)
        fill(disk / "ballast")
        writer.save(BEST, content(1.0, 9000), facts(1))
        assert not writer.wait()
        with pytest.raises(OSError, match="No space left on device"):
            writer.close()
        assert names(disk) == ["ballast"]
