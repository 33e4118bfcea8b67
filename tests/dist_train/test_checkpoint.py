"""dist_train/checkpoint.py: what is saved comes back, and nothing damaged is loaded."""

import errno
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from dist_train import checkpoint, checkpoint_writer
from dist_train.checkpoint import (
    FILES,
    FILES_OF_FORMAT_2,
    FORMAT,
    TENSOR_FILES,
    CheckpointError,
    Content,
    check_is_finite,
    load_checkpoint,
    save_checkpoint,
)
from dist_train.config import RunConfig, config_to_yaml, load_run_config
from tests.helpers.nfs import keep_open_files

CONFIG = config_to_yaml(RunConfig(name="n"))
FACTS = {"step": 3, "val_mse": 0.5, "dtype": "fp32"}


def content(value: float = 1.0) -> Content:
    return Content(
        model={"a.weight": torch.full((2, 3), value), "anchor": torch.arange(4.0)},
        memory={"b": torch.ones(2)},
        memory_next={"b": torch.zeros(2)},
        optimizer={"exp_avg.a.weight": torch.ones(2, 3), "step.a.weight": torch.tensor(3.0)},
        closed_form={"ridge": torch.ones(2, dtype=torch.float64)},
        ranks={"0/torch": torch.arange(5, dtype=torch.uint8)},
        training={"state": {"step": 3, "best_val_mse": None}},
        series={"name": "x", "series": []},
    )


def save(folder: Path, value: float = 1.0) -> Content:
    saved = content(value)
    save_checkpoint(folder, saved, config=CONFIG, facts=FACTS)
    return saved


def value_of(folder: Path) -> float:
    return float(load_checkpoint(folder).model["a.weight"][0, 0])


def test_what_was_loaded_is_not_kept_open(tmp_path: Path):
    save(tmp_path / "best")
    loaded = load_checkpoint(tmp_path / "best")
    assert loaded.optimizer
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()


def test_a_file_that_cannot_be_read_is_a_checkpoint_that_cannot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Then an older one is gone on with, instead of none."""
    save(tmp_path / "best")

    def fail(path: Path) -> str:
        raise OSError(errno.EIO, "Input/output error", str(path))

    monkeypatch.setattr(checkpoint, "sha256_of", fail)
    with pytest.raises(CheckpointError, match=r"best: cannot be read: .*Input/output error"):
        load_checkpoint(tmp_path / "best")


def test_better_models_are_saved_while_an_older_one_is_kept_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """On NFS the files of a folder that is deleted stay in it for as long as they are read."""
    keep_open_files(monkeypatch)
    folder, opened = tmp_path / "best", []
    for value in (1.0, 2.0, 3.0, 4.0):
        save(folder, value)
        assert value_of(folder) == value
        opened.append((folder / "model.safetensors").open())
    assert len(list(tmp_path.glob(".best.old*"))) == 3
    for file in opened:
        file.close()
    save(folder, 5.0)
    assert value_of(folder) == 5.0
    checkpoint_writer.sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def save_in_format_2(folder: Path) -> None:
    """Write what the version before this one wrote: four files, no checksum of the manifest."""
    folder.mkdir()
    save_file({"a.weight": torch.full((2, 3), 7.0)}, folder / "model.safetensors")
    save_file({}, folder / "memory.safetensors")
    (folder / "series.json").write_text('{"name": "x"}')
    (folder / "config.yaml").write_text(CONFIG)
    sums = {n: hashlib.sha256((folder / n).read_bytes()).hexdigest() for n in FILES_OF_FORMAT_2}
    manifest = {"format": 2, **FACTS, "bank": None, "sha256": sums}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_what_is_saved_comes_back(tmp_path: Path):
    saved = save(tmp_path / "best")
    loaded = load_checkpoint(tmp_path / "best")
    for name in TENSOR_FILES:
        mine, theirs = getattr(saved, name), getattr(loaded, name)
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)
        assert all(mine[key].dtype == theirs[key].dtype for key in mine)
    assert (loaded.series, loaded.training) == (saved.series, saved.training)
    assert (loaded.step, loaded.manifest["val_mse"], loaded.manifest["format"]) == (3, 0.5, FORMAT)
    assert loaded.can_be_resumed
    assert load_run_config(tmp_path / "best/config.yaml") == RunConfig(name="n")


def test_a_second_save_replaces_the_first_and_leaves_nothing_beside(tmp_path: Path):
    save(tmp_path / "best", 1.0)
    save(tmp_path / "best", 2.0)
    assert value_of(tmp_path / "best") == 2.0
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


@pytest.mark.parametrize("name", FILES)
def test_refuses_an_altered_file(tmp_path: Path, name: str):
    save(tmp_path / "best")
    path = tmp_path / "best" / name
    altered = bytearray(path.read_bytes())
    altered[len(altered) // 2] ^= 1
    path.write_bytes(altered)
    with pytest.raises(CheckpointError, match=f"{name}: altered since it was saved"):
        load_checkpoint(tmp_path / "best")


@pytest.mark.parametrize("name", FILES)
def test_refuses_a_missing_file(tmp_path: Path, name: str):
    save(tmp_path / "best")
    (tmp_path / "best" / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name}: missing"):
        load_checkpoint(tmp_path / "best")


@pytest.mark.parametrize("key", ["step", "val_mse", "dtype", "sha256", "manifest_sha256"])
def test_refuses_a_manifest_that_was_altered_and_is_still_json(tmp_path: Path, key: str):
    save(tmp_path / "best")
    path = tmp_path / "best/manifest.json"
    manifest = json.loads(path.read_text())
    other: dict[str, Any] = {
        "step": 4, "val_mse": 0.25, "dtype": "bf16", "manifest_sha256": "0" * 64,
        "sha256": manifest["sha256"] | {"model.safetensors": "0" * 64},
    }  # fmt: skip
    path.write_text(json.dumps(manifest | {key: other[key]}))
    with pytest.raises(CheckpointError, match=r"manifest.json: altered since it was saved"):
        load_checkpoint(tmp_path / "best")


def test_a_manifest_may_be_laid_out_in_another_way(tmp_path: Path):
    save(tmp_path / "best", 5.0)
    path = tmp_path / "best/manifest.json"
    path.write_text(json.dumps(dict(reversed(json.loads(path.read_text()).items()))))
    assert value_of(tmp_path / "best") == 5.0


def test_a_checkpoint_of_format_2_has_weights_and_cannot_be_resumed(tmp_path: Path):
    save_in_format_2(tmp_path / "best")
    loaded = load_checkpoint(tmp_path / "best")
    assert loaded.model["a.weight"][0, 0] == 7.0
    assert (loaded.step, loaded.can_be_resumed, loaded.optimizer) == (3, False, {})


def test_a_checkpoint_of_format_2_is_verified_too(tmp_path: Path):
    save_in_format_2(tmp_path / "best")
    (tmp_path / "best/series.json").write_text('{"name": "y"}')
    with pytest.raises(CheckpointError, match=r"series.json: altered"):
        load_checkpoint(tmp_path / "best")


def test_refuses_a_folder_without_a_checkpoint(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"no checkpoint here \(manifest.json is missing\)"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a checkpoint manifest"),
        ("[]", "not a checkpoint manifest"),
        ("{}", "not a checkpoint manifest"),
        ('{"format": 99, "sha256": {}}', "format 99 is not known"),
        ('{"format": [], "sha256": {}}', "not a checkpoint manifest"),
        ('{"format": 2, "step": 1, "sha256": {"../../etc/passwd": "0"}}', "files or step"),
        ('{"format": 3, "step": 1, "sha256": {}}', "not a checkpoint manifest"),
    ],
)
def test_refuses_a_foreign_manifest(tmp_path: Path, text: str, message: str):
    save(tmp_path / "best")
    (tmp_path / "best/manifest.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path / "best")


def test_the_manifest_lists_every_file(tmp_path: Path):
    save(tmp_path / "best")
    manifest = json.loads((tmp_path / "best/manifest.json").read_text())
    files = {path.name for path in (tmp_path / "best").iterdir()}
    assert files == {*manifest["sha256"], "manifest.json"}


@pytest.mark.parametrize("left", [("new",), ("old",), ("new", "old")])
def test_one_whose_saving_was_killed_between_its_renames_is_found(
    tmp_path: Path, left: tuple[str, ...]
):
    for word, value in (("new", 2.0), ("old", 1.0)):
        save(tmp_path / word, value)
        if word in left:
            (tmp_path / word).rename(tmp_path / f".best.{word}")
    for word in ("new", "old"):
        shutil.rmtree(tmp_path / word, ignore_errors=True)
    assert value_of(tmp_path / "best") == (2.0 if "new" in left else 1.0)
    save(tmp_path / "best", 3.0)
    assert value_of(tmp_path / "best") == 3.0
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_one_that_was_killed_while_it_was_written_does_not_count(tmp_path: Path):
    save(tmp_path / "best", 1.0)
    shutil.copytree(tmp_path / "best", tmp_path / ".best.new")
    (tmp_path / ".best.new/manifest.json").unlink()
    assert value_of(tmp_path / "best") == 1.0
    save(tmp_path / "best", 2.0)
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def fail_at(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Let the disk be full when one file is written."""
    write_tensors, write_text = checkpoint.write_tensors, checkpoint.write_text

    def check(path: Path) -> None:
        if path.name == name:
            raise OSError(28, "No space left on device", str(path))

    def tensors(path: Path, *given: Any) -> None:
        check(path)
        write_tensors(path, *given)

    def text(path: Path, *given: Any) -> None:
        check(path)
        write_text(path, *given)

    monkeypatch.setattr(checkpoint, "write_tensors", tensors)
    monkeypatch.setattr(checkpoint, "write_text", text)


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_a_save_that_fails_leaves_the_old_one_and_nothing_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    save(tmp_path / "best", 1.0)
    fail_at(monkeypatch, name)
    with pytest.raises(OSError, match="No space left on device"):
        save(tmp_path / "best", 2.0)
    assert value_of(tmp_path / "best") == 1.0
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


@pytest.mark.parametrize("word", ["new", "old"])
def test_a_save_that_fails_loses_nothing_that_was_left_by_a_killed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str
):
    save(tmp_path / "best", 1.0)
    (tmp_path / "best").rename(tmp_path / f".best.{word}")
    fail_at(monkeypatch, "manifest.json")
    with pytest.raises(OSError, match="No space left on device"):
        save(tmp_path / "best", 2.0)
    assert value_of(tmp_path / "best") == 1.0


def test_a_model_that_is_not_finite_is_not_saved():
    check_is_finite(content())
    bad = content(float("nan"))
    with pytest.raises(FloatingPointError, match=r"a.weight is not finite any more, so nothing"):
        check_is_finite(bad)
